package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Version is what a store calls the state of one key: a mod revision or a versionstamp. Empty: the key is absent.
type Version []byte

// Driver is one caller's way to a store. It is used by one goroutine at a time.
type Driver interface {
	Put(ctx context.Context, key, value []byte) error
	// CompareAndPut writes only if the key is still at version, and returns its next one.
	CompareAndPut(ctx context.Context, key, value []byte, version Version) (Version, error)
	Get(ctx context.Context, key []byte, strong bool) error
}

// QueueDriver passes messages through a queue.
type QueueDriver interface {
	// Pass enqueues a message and returns when it was delivered and acknowledged (a pushed one: when its request has
	// arrived); at is the delivery.
	Pass(ctx context.Context, payload []byte) (at time.Time, err error)
}

// Store hands out drivers that share one connection.
type Store interface {
	NewDriver(ctx context.Context) (Driver, error)
	Key(number int) []byte
	Close()
}

var (
	errConflict = errors.New("the compare failed")
	errNoRow    = errors.New("the key was not there")
)

func openStore(ctx context.Context, system, transport, endpoint, listenEndpoint string) (Store, error) {
	switch system + "/" + transport {
	case "etcd/unary":
		return openEtcd(ctx, endpoint)
	case "kvnode/unary":
		return openKvUnary(ctx, endpoint)
	case "kvnode/session":
		return openKvSession(ctx, endpoint, false)
	case "kvnode/streams":
		return openKvSession(ctx, endpoint, true)
	case "kvnode/queue":
		return openKvQueue(ctx, endpoint, listenEndpoint)
	case "kvnode/push":
		return openKvPush(ctx, endpoint, listenEndpoint)
	}
	return nil, fmt.Errorf("unknown system and transport %s/%s", system, transport)
}
