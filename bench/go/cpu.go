package main

import (
	"io/ioutil"
	"strconv"
	"strings"
	"syscall"
)

const clockTicksPerSecond = 100 // USER_HZ, fixed on Linux

// cpuSeconds is the user and system time of the processes so far (proc(5), fields 14 and 15).
func cpuSeconds(pids []int) float64 {
	ticks := 0
	for _, pid := range pids {
		data, err := ioutil.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		if err != nil {
			continue
		}
		// The command may hold spaces: count from behind its closing bracket, where field 3 begins.
		fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
		user, _ := strconv.Atoi(fields[11])
		system, _ := strconv.Atoi(fields[12])
		ticks += user + system
	}
	return float64(ticks) / clockTicksPerSecond
}

func ownCPUSeconds() float64 {
	var usage syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &usage) != nil {
		return 0
	}
	return float64(usage.Utime.Nano()+usage.Stime.Nano()) / 1e9
}
