package main

import (
	"context"

	pb "kvbench/kvpb"

	"google.golang.org/grpc"
)

type kvUnaryStore struct {
	connection *grpc.ClientConn
}

func openKvUnary(ctx context.Context, endpoint string) (Store, error) {
	connection, err := dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	return &kvUnaryStore{connection}, nil
}

func (store *kvUnaryStore) NewDriver(context.Context) (Driver, error) {
	return &kvUnaryDriver{pb.NewKVClient(store.connection)}, nil
}

func (store *kvUnaryStore) Key(number int) []byte { return kvKey(number) }

func (store *kvUnaryStore) Close() { store.connection.Close() }

type kvUnaryDriver struct {
	client pb.KVClient
}

func (driver *kvUnaryDriver) Put(ctx context.Context, key, value []byte) error {
	_, err := driver.write(ctx, putRequest(key, value))
	return err
}

func (driver *kvUnaryDriver) CompareAndPut(ctx context.Context, key, value []byte, version Version) (Version, error) {
	return driver.write(ctx, checkAndSetRequest(key, value, version))
}

func (driver *kvUnaryDriver) write(ctx context.Context, request *pb.AtomicWriteRequest) (Version, error) {
	response, err := driver.client.AtomicWrite(ctx, request)
	if err != nil {
		return nil, err
	}
	return written(response)
}

func (driver *kvUnaryDriver) Get(ctx context.Context, key []byte, strong bool) error {
	response, err := driver.client.Read(ctx, getRequest(key, strong))
	if err != nil {
		return err
	}
	return found(response)
}
