package main

import (
	"context"
	"errors"
	"fmt"
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

func openStore(ctx context.Context, system, transport, endpoint string) (Store, error) {
	switch system + "/" + transport {
	case "etcd/unary":
		return openEtcd(ctx, endpoint)
	case "kvnode/unary":
		return openKvUnary(ctx, endpoint)
	case "kvnode/session":
		return openKvSession(ctx, endpoint, false)
	case "kvnode/streams":
		return openKvSession(ctx, endpoint, true)
	}
	return nil, fmt.Errorf("unknown system and transport %s/%s", system, transport)
}
