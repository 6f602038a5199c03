package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	pb "kvbench/kvpb"
)

const (
	benchQueue    = "bench"
	listenCredit  = 512 // more than callers hold at a time, so that credit is never what is waited for
	loadPerCommit = 100 // messages in one transaction of a load
)

// kvQueueStore passes messages through one queue: callers enqueue on one Session stream, one Listen stream brings
// every message, and a message has passed when its ack is confirmed.
type kvQueueStore struct {
	*kvSessionStore
	stream pb.Queue_ListenClient
	wake   chan struct{}

	mutex   sync.Mutex
	acks    [][]byte                // not sent yet
	unacked map[string]*queueDriver // by lease
	drivers []*queueDriver          // by the number that their messages carry
	failure error
}

func openKvQueue(ctx context.Context, endpoint, listenEndpoint string) (Store, error) {
	session, err := openKvSession(ctx, endpoint, false)
	if err != nil {
		return nil, err
	}
	connection, err := dial(ctx, listenEndpoint) // a consumer is another program, with a connection of its own
	if err != nil {
		return nil, err
	}
	stream, err := pb.NewQueueClient(connection).Listen(ctx)
	if err != nil {
		return nil, err
	}
	opening := &pb.ListenRequest{Open: &pb.ListenOpen{Queue: benchQueue, Consumer: "bench"}, Credit: listenCredit}
	if err := stream.Send(opening); err != nil {
		return nil, err
	}
	store := &kvQueueStore{
		kvSessionStore: session.(*kvSessionStore), stream: stream, wake: make(chan struct{}, 1),
		unacked: map[string]*queueDriver{},
	}
	go store.receive()
	go store.send()
	return store, nil
}

func (store *kvQueueStore) NewDriver(context.Context) (Driver, error) {
	driver := &queueDriver{
		sessionDriver: newSessionDriver(store.shared), passed: make(chan error, 1), delivered: make(chan time.Time, 1),
	}
	store.mutex.Lock()
	driver.number = uint32(len(store.drivers))
	store.drivers = append(store.drivers, driver)
	store.mutex.Unlock()
	return driver, nil
}

func (store *kvQueueStore) receive() {
	for {
		response, err := store.stream.Recv()
		if err != nil {
			store.fail(err)
			return
		}
		now := time.Now()
		store.mutex.Lock()
		for _, message := range response.Messages {
			store.take(message, now)
		}
		for _, lease := range response.Settled {
			if driver := store.unacked[string(lease)]; driver != nil {
				delete(store.unacked, string(lease))
				driver.passed <- nil
			}
		}
		for _, failed := range response.Failed {
			if driver := store.unacked[string(failed.Lease)]; driver != nil {
				delete(store.unacked, string(failed.Lease))
				driver.passed <- errors.New(failed.GetError().GetMessage())
			}
		}
		store.mutex.Unlock()
		if len(response.Messages) > 0 {
			select {
			case store.wake <- struct{}{}:
			default:
			}
		}
	}
}

// take handles a message: it wakes whoever enqueued it, and is acked.
func (store *kvQueueStore) take(message *pb.QueueMessage, now time.Time) {
	store.acks = append(store.acks, message.Lease)
	number := int(binary.LittleEndian.Uint32(message.GetPayload().GetData()))
	if number >= len(store.drivers) {
		return // somebody else's, from before
	}
	driver := store.drivers[number]
	store.unacked[string(message.Lease)] = driver
	select {
	case driver.delivered <- now:
	default:
	}
}

// send acks whatever has come since the last request, and grants as much credit again.
func (store *kvQueueStore) send() {
	for range store.wake {
		runtime.Gosched()
		store.mutex.Lock()
		request := &pb.ListenRequest{Ack: store.acks, Credit: uint32(len(store.acks))}
		store.acks = nil
		store.mutex.Unlock()
		if len(request.Ack) == 0 {
			continue
		}
		if err := store.stream.Send(request); err != nil {
			store.fail(err)
			return
		}
	}
}

func (store *kvQueueStore) fail(err error) {
	store.mutex.Lock()
	defer store.mutex.Unlock()
	store.failure = err
	for lease, driver := range store.unacked {
		delete(store.unacked, lease)
		driver.passed <- err
	}
}

// queueDriver has one message on its way at a time.
type queueDriver struct {
	*sessionDriver
	number    uint32
	passed    chan error
	delivered chan time.Time
}

// Pass enqueues a message and returns when its ack is confirmed; at is when it was delivered.
func (driver *queueDriver) Pass(ctx context.Context, payload []byte) (at time.Time, err error) {
	binary.LittleEndian.PutUint32(payload, driver.number)
	select {
	case <-driver.delivered: // of a message that came twice
	default:
	}
	request := &pb.AtomicWriteRequest{Enqueues: []*pb.Enqueue{enqueueOf(payload, 0)}}
	if _, err := driver.write(request); err != nil {
		return at, err
	}
	select {
	case err = <-driver.passed:
	case <-ctx.Done():
		return at, fmt.Errorf("no message came back: %v", ctx.Err())
	}
	select {
	case at = <-driver.delivered:
	default:
	}
	return at, err
}

func enqueueOf(payload []byte, dueAtMs int64) *pb.Enqueue {
	return &pb.Enqueue{
		Queue: benchQueue, DueAtMs: dueAtMs,
		Payload: &pb.Value{Data: payload, Encoding: pb.ValueEncoding_VALUE_ENCODING_BYTES},
	}
}

// loadDelayed enqueues messages that fall due between one day and eleven days from now.
func loadDelayed(ctx context.Context, endpoint string, plan Plan) (float64, error) {
	opened, err := openKvSession(ctx, endpoint, false)
	if err != nil {
		return 0, err
	}
	defer opened.Close()
	const callers = 8
	started, day := time.Now(), int64(24*time.Hour/time.Millisecond)
	dueAtMs, share := time.Now().UnixNano()/int64(time.Millisecond)+day, plan.KeysCount/callers
	failures := make(chan error, callers)
	for number := 0; number < callers; number++ {
		driver := newSessionDriver(opened.(*kvSessionStore).shared)
		go func(number int) {
			for done := 0; done < share; {
				request := &pb.AtomicWriteRequest{}
				for ; len(request.Enqueues) < loadPerCommit && done < share; done++ {
					// A stride that has no factor with the range spreads the due times over it.
					at := dueAtMs + int64(done*callers+number)*7919%(10*day)
					request.Enqueues = append(request.Enqueues, enqueueOf(make([]byte, plan.ValueBytes), at))
				}
				if _, err := driver.write(request); err != nil {
					failures <- err
					return
				}
			}
			failures <- nil
		}(number)
	}
	for number := 0; number < callers; number++ {
		if err := <-failures; err != nil {
			return 0, err
		}
	}
	return time.Since(started).Seconds(), nil
}
