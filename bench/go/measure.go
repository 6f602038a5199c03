package main

import (
	"context"
	"fmt"
	"math/rand"
	"sort"
	"sync"
	"sync/atomic"
	"time"
)

// Plan says what one measurement does.
type Plan struct {
	Mode       string // put, cas, get, stale, pass
	Callers    int
	Warmup     time.Duration
	Duration   time.Duration
	KeysCount  int
	ValueBytes int
	Pids       []int
	Rate       float64 // operations a second of all callers together; 0 = as fast as they can
}

// Result is one measurement. Latencies are milliseconds; CPU is that of the servers, all of them together.
type Result struct {
	Mode         string  `json:"mode"`
	Callers      int     `json:"callers"`
	Seconds      float64 `json:"seconds"`
	Operations   int     `json:"operations"`
	PerSecond    float64 `json:"operations_per_second"`
	P50          float64 `json:"p50_ms"`
	P90          float64 `json:"p90_ms"`
	P99          float64 `json:"p99_ms"`
	Max          float64 `json:"max_ms"`
	Errors       int     `json:"errors"`
	FirstError   string  `json:"first_error,omitempty"`
	DeliveredP50 float64 `json:"delivered_p50_ms,omitempty"`
	DeliveredP99 float64 `json:"delivered_p99_ms,omitempty"`
	ServerCPU    float64 `json:"server_cpu_us_per_operation"`
	GeneratorCPU float64 `json:"generator_cpu_us_per_operation"`
}

const casKeysPerCaller = 16

// caller is one closed loop: it begins an operation when the one before has ended.
type caller struct {
	driver    Driver
	plan      Plan
	store     Store
	random    *rand.Rand
	value     []byte
	versions  [casKeysPerCaller]Version
	firstKey  int
	latencies []time.Duration
	delivered time.Duration // of the last operation, until its message was delivered
	deliver   []time.Duration
	errors    int
	failure   error
	number    int
}

const (
	phaseWarmup = iota
	phaseMeasure
	phaseDone
)

// measure runs every caller through the warm-up and the measured time; only what ended inside the latter counts.
func measure(ctx context.Context, store Store, plan Plan, serial int) (Result, error) {
	callers := make([]*caller, plan.Callers)
	for number := range callers {
		driver, err := store.NewDriver(ctx)
		if err != nil {
			return Result{}, err
		}
		random := rand.New(rand.NewSource(int64(serial)<<20 + int64(number)))
		value := make([]byte, plan.ValueBytes)
		random.Read(value)
		// Compare-and-put takes keys that nothing has written yet: its callers do not contend.
		firstKey := plan.KeysCount + (serial*4096+number)*casKeysPerCaller
		callers[number] = &caller{driver: driver, plan: plan, store: store, random: random, value: value, firstKey: firstKey, number: number}
	}
	var phase int32
	var group sync.WaitGroup
	for _, each := range callers {
		group.Add(1)
		go func(each *caller) { defer group.Done(); each.run(ctx, &phase) }(each)
	}
	time.Sleep(plan.Warmup)
	before, ownBefore, started := cpuSeconds(plan.Pids), ownCPUSeconds(), time.Now()
	atomic.StoreInt32(&phase, phaseMeasure)
	time.Sleep(plan.Duration)
	atomic.StoreInt32(&phase, phaseDone)
	elapsed := time.Since(started)
	servers, own := cpuSeconds(plan.Pids)-before, ownCPUSeconds()-ownBefore
	group.Wait()
	return summarize(plan, callers, elapsed, servers, own), nil
}

func (each *caller) run(ctx context.Context, phase *int32) {
	began := time.Now()
	for count := 0; ; count++ {
		each.pace(began, count)
		at := atomic.LoadInt32(phase)
		if at == phaseDone {
			return
		}
		started := time.Now()
		err := each.once(ctx, count)
		took := time.Since(started)
		if err != nil {
			each.errors++
			each.failure = err
			time.Sleep(10 * time.Millisecond)
		} else if at == phaseMeasure && atomic.LoadInt32(phase) == phaseMeasure {
			each.latencies = append(each.latencies, took)
			if each.delivered > 0 {
				each.deliver = append(each.deliver, each.delivered)
			}
		}
	}
}

// pace waits for the operation's turn at the wanted rate; one that is late begins at once.
func (each *caller) pace(began time.Time, count int) {
	if each.plan.Rate > 0 {
		turn := float64(count*each.plan.Callers+each.number) / each.plan.Rate
		time.Sleep(time.Until(began.Add(time.Duration(turn * float64(time.Second)))))
	}
}

func (each *caller) once(ctx context.Context, count int) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	switch each.plan.Mode {
	case "put":
		return each.driver.Put(ctx, each.randomKey(), each.freshValue())
	case "get":
		return each.driver.Get(ctx, each.randomKey(), true)
	case "stale":
		return each.driver.Get(ctx, each.randomKey(), false)
	case "pass":
		started := time.Now()
		at, err := each.driver.(QueueDriver).Pass(ctx, each.freshValue())
		each.delivered = at.Sub(started)
		return err
	case "cas":
		slot := count % casKeysPerCaller
		key := each.store.Key(each.firstKey + slot)
		next, err := each.driver.CompareAndPut(ctx, key, each.freshValue(), each.versions[slot])
		each.versions[slot] = next
		return err
	}
	return fmt.Errorf("unknown mode %q", each.plan.Mode)
}

func (each *caller) randomKey() []byte { return each.store.Key(each.random.Intn(each.plan.KeysCount)) }

// freshValue is new memory, since a pipelined message may be encoded after the next operation has begun.
func (each *caller) freshValue() []byte {
	value := append([]byte(nil), each.value...)
	if len(value) >= 8 {
		each.random.Read(value[:8])
	}
	return value
}

func summarize(plan Plan, callers []*caller, elapsed time.Duration, servers, own float64) Result {
	result := Result{Mode: plan.Mode, Callers: plan.Callers, Seconds: elapsed.Seconds()}
	var all, deliver []time.Duration
	for _, each := range callers {
		all = append(all, each.latencies...)
		deliver = append(deliver, each.deliver...)
		result.Errors += each.errors
		if each.failure != nil {
			result.FirstError = each.failure.Error()
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i] < all[j] })
	sort.Slice(deliver, func(i, j int) bool { return deliver[i] < deliver[j] })
	result.Operations = len(all)
	if len(all) == 0 {
		return result
	}
	count := float64(len(all))
	result.PerSecond = count / elapsed.Seconds()
	result.P50, result.P90 = quantile(all, 0.50), quantile(all, 0.90)
	result.P99, result.Max = quantile(all, 0.99), quantile(all, 1)
	if len(deliver) > 0 {
		result.DeliveredP50, result.DeliveredP99 = quantile(deliver, 0.50), quantile(deliver, 0.99)
	}
	result.ServerCPU, result.GeneratorCPU = servers/count*1e6, own/count*1e6
	return result
}

func quantile(sorted []time.Duration, q float64) float64 {
	position := int(q * float64(len(sorted)))
	if position >= len(sorted) {
		position = len(sorted) - 1
	}
	return float64(sorted[position]) / float64(time.Millisecond)
}
