package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io/ioutil"
	"net"
	"net/http"
	"sync"
	"time"

	pb "kvbench/kvpb"
)

const pushQueue = "bench-push"

// kvPushStore is the receiver of a queue that is pushed: a message has passed when its request arrives.
type kvPushStore struct {
	*kvSessionStore
	server *http.Server

	mutex   sync.Mutex
	drivers []*pushDriver // by the number that their messages carry
}

// openKvPush listens at `receive` for what the cluster pushes there.
func openKvPush(ctx context.Context, endpoint, receive string) (Store, error) {
	session, err := openKvSession(ctx, endpoint, false)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("tcp", receive)
	if err != nil {
		return nil, err
	}
	store := &kvPushStore{kvSessionStore: session.(*kvSessionStore)}
	store.server = &http.Server{Handler: http.HandlerFunc(store.receive)}
	go store.server.Serve(listener)
	return store, nil
}

func (store *kvPushStore) NewDriver(context.Context) (Driver, error) {
	driver := &pushDriver{sessionDriver: newSessionDriver(store.shared), arrived: make(chan time.Time, 1)}
	store.mutex.Lock()
	driver.number = uint32(len(store.drivers))
	store.drivers = append(store.drivers, driver)
	store.mutex.Unlock()
	return driver, nil
}

// receive answers 200 with no body, which acknowledges the message.
func (store *kvPushStore) receive(_ http.ResponseWriter, request *http.Request) {
	now := time.Now()
	body, err := ioutil.ReadAll(request.Body)
	if err != nil || len(body) < 4 {
		return
	}
	number := int(binary.LittleEndian.Uint32(body))
	store.mutex.Lock()
	defer store.mutex.Unlock()
	if number < len(store.drivers) {
		select {
		case store.drivers[number].arrived <- now:
		default: // a message that came twice
		}
	}
}

func (store *kvPushStore) Close() {
	store.server.Close()
	store.kvSessionStore.Close()
}

// pushDriver has one message on its way at a time.
type pushDriver struct {
	*sessionDriver
	number  uint32
	arrived chan time.Time
}

// Pass enqueues a message and returns when its request has arrived.
func (driver *pushDriver) Pass(ctx context.Context, payload []byte) (at time.Time, err error) {
	binary.LittleEndian.PutUint32(payload, driver.number)
	select {
	case <-driver.arrived: // of a message that came twice
	default:
	}
	enqueue := enqueueOf(payload, 0)
	enqueue.Queue = pushQueue
	if _, err := driver.write(&pb.AtomicWriteRequest{Enqueues: []*pb.Enqueue{enqueue}}); err != nil {
		return at, err
	}
	select {
	case at = <-driver.arrived:
	case <-ctx.Done():
		err = fmt.Errorf("no request came: %v", ctx.Err())
	}
	return at, err
}
