package main

import (
	"context"
	"encoding/binary"
	"fmt"

	pb "go.etcd.io/etcd/etcdserver/etcdserverpb"
	"google.golang.org/grpc"
)

type etcdStore struct {
	connection *grpc.ClientConn
}

func openEtcd(ctx context.Context, endpoint string) (Store, error) {
	connection, err := dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	return &etcdStore{connection}, nil
}

func (store *etcdStore) NewDriver(context.Context) (Driver, error) {
	return &etcdDriver{pb.NewKVClient(store.connection)}, nil
}

func (store *etcdStore) Key(number int) []byte { return []byte(fmt.Sprintf("bench/%08d", number)) }

func (store *etcdStore) Close() { store.connection.Close() }

type etcdDriver struct {
	client pb.KVClient
}

func (driver *etcdDriver) Put(ctx context.Context, key, value []byte) error {
	_, err := driver.client.Put(ctx, &pb.PutRequest{Key: key, Value: value})
	return err
}

func (driver *etcdDriver) CompareAndPut(ctx context.Context, key, value []byte, version Version) (Version, error) {
	revision := int64(0)
	if len(version) == 8 {
		revision = int64(binary.BigEndian.Uint64(version))
	}
	response, err := driver.client.Txn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{{
			Key: key, Target: pb.Compare_MOD, Result: pb.Compare_EQUAL,
			TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
		}},
		Success: []*pb.RequestOp{{
			Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value}},
		}},
	})
	if err != nil {
		return nil, err
	}
	if !response.Succeeded {
		return nil, errConflict
	}
	next := make([]byte, 8)
	binary.BigEndian.PutUint64(next, uint64(response.Header.Revision))
	return next, nil
}

func (driver *etcdDriver) Get(ctx context.Context, key []byte, strong bool) error {
	response, err := driver.client.Range(ctx, &pb.RangeRequest{Key: key, Serializable: !strong})
	if err == nil && len(response.Kvs) != 1 {
		return errNoRow
	}
	return err
}
