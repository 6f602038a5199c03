package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "kvbench/kvpb"

	"google.golang.org/grpc"
)

// dial opens the one connection that all callers share, as etcd's own client does.
func dial(ctx context.Context, endpoint string) (*grpc.ClientConn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	return grpc.DialContext(ctx, endpoint, grpc.WithInsecure(), grpc.WithBlock())
}

// kvKey is a key of two string parts in Deno KV's encoding.
func kvKey(number int) []byte { return []byte(fmt.Sprintf("\x02bench\x00\x02%08d\x00", number)) }

func putRequest(key, value []byte) *pb.AtomicWriteRequest {
	return &pb.AtomicWriteRequest{Mutations: []*pb.Mutation{{
		Type: pb.MutationType_MUTATION_TYPE_SET, Key: key,
		Value: &pb.Value{Data: value, Encoding: pb.ValueEncoding_VALUE_ENCODING_BYTES},
	}}}
}

func checkAndSetRequest(key, value []byte, version Version) *pb.AtomicWriteRequest {
	request := putRequest(key, value)
	request.Checks = []*pb.Check{{Key: key, Versionstamp: version}}
	return request
}

func getRequest(key []byte, strong bool) *pb.ReadRequest {
	end := append(append(make([]byte, 0, len(key)+1), key...), 0)
	consistency := pb.Consistency_CONSISTENCY_EVENTUAL
	if strong {
		consistency = pb.Consistency_CONSISTENCY_STRONG
	}
	return &pb.ReadRequest{Ranges: []*pb.ReadRange{{Start: key, End: end, Limit: 1}}, Consistency: consistency}
}

func written(response *pb.AtomicWriteResponse) (Version, error) {
	switch response.GetStatus() {
	case pb.AtomicWriteStatus_ATOMIC_WRITE_STATUS_SUCCESS:
		return response.Versionstamp, nil
	case pb.AtomicWriteStatus_ATOMIC_WRITE_STATUS_CHECK_FAILED:
		return nil, errConflict
	}
	return nil, errors.New("the answer is not that of a write")
}

func found(response *pb.ReadResponse) error {
	if response == nil || len(response.Ranges) != 1 {
		return errors.New("the answer is not that of a read")
	}
	if len(response.Ranges[0].Entries) != 1 {
		return errNoRow
	}
	return nil
}
