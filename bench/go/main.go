// Loadgen loads a three-node etcd or kvnode with closed-loop callers and prints one JSON object a measurement.
//
// It is not written in Python because a Python client costs more than the servers that it would measure.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	system := flag.String("system", "kvnode", "etcd or kvnode")
	transport := flag.String("transport", "unary", "unary; kvnode also session (one stream for all callers), streams (one each), queue, push")
	endpoint := flag.String("endpoint", "127.0.0.1:4512", "host:port of the node to load")
	listenEndpoint := flag.String("listen-endpoint", "", "where a queue is listened to, the endpoint when empty; with push, where this program receives")
	modes := flag.String("modes", "put", "of put, cas (compare and put), get (linearizable), stale, pass (by a queue); or load (write every key once), delayed (that many messages)")
	callers := flag.String("callers", "1,16,64,256", "numbers of concurrent callers")
	warmup := flag.Duration("warmup", time.Second, "time before each measurement")
	duration := flag.Duration("duration", 5*time.Second, "length of each measurement")
	keysCount := flag.Int("keys", 10000, "keys that are loaded and read")
	valueBytes := flag.Int("value-bytes", 256, "size of a value")
	rate := flag.Float64("rate", 0, "operations a second of all callers together; 0 = as fast as they can")
	pids := flag.String("pids", "", "process ids of the servers, for their CPU time")
	flag.Parse()

	ctx := context.Background()
	if *listenEndpoint == "" {
		*listenEndpoint = *endpoint
	}
	store, err := openStore(ctx, *system, *transport, *endpoint, *listenEndpoint)
	exitOn(err)
	defer store.Close()
	plan := Plan{Warmup: *warmup, Duration: *duration, KeysCount: *keysCount, ValueBytes: *valueBytes, Pids: numbers(*pids), Rate: *rate}
	serial := int(time.Now().Unix()%10000) * 16
	for _, mode := range strings.Split(*modes, ",") {
		if mode == "load" {
			exitOn(load(ctx, store, plan))
			continue
		}
		if mode == "delayed" {
			seconds, err := loadDelayed(ctx, *endpoint, plan)
			exitOn(err)
			loaded := map[string]interface{}{"mode": mode, "operations": plan.KeysCount, "seconds": seconds}
			exitOn(json.NewEncoder(os.Stdout).Encode(loaded))
			continue
		}
		for _, count := range numbers(*callers) {
			plan.Mode, plan.Callers = mode, count
			serial++
			result, err := measure(ctx, store, plan, serial)
			exitOn(err)
			exitOn(json.NewEncoder(os.Stdout).Encode(result))
		}
	}
}

const loadCallers = 256

// load writes every key once.
func load(ctx context.Context, store Store, plan Plan) error {
	started := time.Now()
	var next, failed int64
	var group sync.WaitGroup
	failures := make(chan error, loadCallers)
	for number := 0; number < loadCallers; number++ {
		driver, err := store.NewDriver(ctx)
		if err != nil {
			return err
		}
		group.Add(1)
		go func() {
			defer group.Done()
			value := make([]byte, plan.ValueBytes)
			for {
				key := int(atomic.AddInt64(&next, 1)) - 1
				if key >= plan.KeysCount {
					return
				}
				if err := driver.Put(ctx, store.Key(key), value); err != nil {
					atomic.AddInt64(&failed, 1)
					failures <- err
					return
				}
			}
		}()
	}
	group.Wait()
	if failed > 0 {
		return fmt.Errorf("%d callers failed while loading: %v", failed, <-failures)
	}
	return json.NewEncoder(os.Stdout).Encode(map[string]interface{}{
		"mode": "load", "operations": plan.KeysCount, "seconds": time.Since(started).Seconds(),
	})
}

func numbers(list string) []int {
	var parsed []int
	for _, item := range strings.Split(list, ",") {
		if item == "" {
			continue
		}
		number, err := strconv.Atoi(item)
		exitOn(err)
		parsed = append(parsed, number)
	}
	return parsed
}

func exitOn(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "loadgen:", err)
		os.Exit(1)
	}
}
