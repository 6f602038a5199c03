package main

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	pb "kvbench/kvpb"

	"google.golang.org/grpc"
)

// The server's own bounds: operations in a message, and unanswered on a stream.
const (
	maxMessageOperations = 4096
	maxUnanswered        = 65536
)

// The same rule as the Python client's (kvnode/client/gathering.py): what is submitted while a message is
// unanswered gathers for the next one, for five milliseconds at most.
const (
	maxFlights = 1
	maxGather  = 5 * time.Millisecond
)

// So many turns of other goroutines make a pass: some 30 microseconds where none of them has anything to do.
const yieldsPerPass = 150

// kvSessionStore serves all callers over one Session stream, or over one each.
type kvSessionStore struct {
	connection *grpc.ClientConn
	apart      bool
	shared     *session
}

func openKvSession(ctx context.Context, endpoint string, apart bool) (Store, error) {
	connection, err := dial(ctx, endpoint)
	if err != nil {
		return nil, err
	}
	store := &kvSessionStore{connection: connection, apart: apart}
	if !apart {
		store.shared, err = openSession(ctx, connection)
	}
	return store, err
}

func (store *kvSessionStore) NewDriver(ctx context.Context) (Driver, error) {
	if !store.apart {
		return newSessionDriver(store.shared), nil
	}
	own, err := openSession(ctx, store.connection)
	return newSessionDriver(own), err
}

func (store *kvSessionStore) Key(number int) []byte { return kvKey(number) }

func (store *kvSessionStore) Close() { store.connection.Close() }

// session pipelines the operations of many callers: whatever waits when the sender comes round travels in one message.
type session struct {
	stream   pb.KV_SessionClient
	wake     chan struct{}
	answered chan struct{}
	gather   *time.Timer
	left     time.Time // when the last message did

	mutex   sync.Mutex
	waiting []*pb.Operation
	callers []*sessionDriver              // of the operations in waiting
	pending [maxUnanswered]*sessionDriver // by id modulo its size; nil once answered
	nextID  uint64
	lowest  uint64   // every smaller id has been answered
	flights []uint64 // the first id of each message that is wholly unanswered
	failure error

	driversCount atomic.Int64
}

func openSession(ctx context.Context, connection *grpc.ClientConn) (*session, error) {
	stream, err := pb.NewKVClient(connection).Session(ctx)
	if err != nil {
		return nil, err
	}
	if err := stream.Send(&pb.SessionRequest{Open: &pb.SessionOpen{}}); err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if len(first.GetOpened().GetClientId()) == 0 {
		return nil, fmt.Errorf("the session was not opened: %v", first)
	}
	opened := &session{stream: stream, wake: make(chan struct{}, 1), nextID: 1, lowest: 1}
	opened.answered = make(chan struct{}, 1)
	opened.gather = time.NewTimer(time.Hour)
	go opened.send()
	go opened.receive()
	return opened, nil
}

func (session *session) submit(operation *pb.Operation, caller *sessionDriver) error {
	session.mutex.Lock()
	if session.failure != nil {
		defer session.mutex.Unlock()
		return session.failure
	}
	session.waiting = append(session.waiting, operation)
	session.callers = append(session.callers, caller)
	session.mutex.Unlock()
	select {
	case session.wake <- struct{}{}:
	default:
	}
	return nil
}

func (session *session) send() {
	for range session.wake {
		for {
			session.awaitAnswer()
			session.gatherPass()
			request := session.next()
			if request == nil {
				break
			}
			session.left = time.Now()
			if err := session.stream.Send(request); err != nil {
				session.fail(err)
				return
			}
		}
	}
}

// awaitAnswer returns when fewer than maxFlights messages are unanswered, or maxGather after the last one left.
func (session *session) awaitAnswer() {
	session.mutex.Lock()
	crowded := len(session.flights) >= maxFlights
	session.mutex.Unlock()
	if !crowded {
		return
	}
	left := maxGather - time.Since(session.left)
	if left <= 0 {
		return
	}
	session.gather.Reset(left)
	select {
	case <-session.answered:
		if !session.gather.Stop() {
			select {
			case <-session.gather.C:
			default:
			}
		}
	case <-session.gather.C:
	}
}

// gatherPass lets callers that were answered together join this message, as all that is submitted in one pass of the
// Python client's loop leaves together: until a while has gone by in which nobody has. Of a lone caller there are no
// others.
func (session *session) gatherPass() {
	for before := -1; session.driversCount.Load() > 1; {
		session.mutex.Lock()
		count := len(session.waiting)
		session.mutex.Unlock()
		if count == before {
			return
		}
		before = count
		for yields := 0; yields < yieldsPerPass; yields++ {
			runtime.Gosched()
		}
	}
}

// next gives ids to what waits and makes one message of it; nil when nothing waits.
func (session *session) next() *pb.SessionRequest {
	session.mutex.Lock()
	defer session.mutex.Unlock()
	count := len(session.waiting)
	if count == 0 {
		return nil
	}
	if count > maxMessageOperations {
		count = maxMessageOperations
	}
	operations := session.waiting[:count:count]
	for position, operation := range operations {
		operation.Id = session.nextID
		session.pending[session.nextID%maxUnanswered] = session.callers[position]
		session.nextID++
	}
	session.flights = append(session.flights, operations[0].Id)
	for len(session.answered) > 0 {
		<-session.answered // of an earlier wait
	}
	session.waiting = append([]*pb.Operation(nil), session.waiting[count:]...)
	session.callers = append(session.callers[:0], session.callers[count:]...)
	return &pb.SessionRequest{Operations: operations, LowestUnanswered: session.lowest}
}

func (session *session) receive() {
	for {
		response, err := session.stream.Recv()
		if err != nil {
			session.fail(err)
			return
		}
		session.mutex.Lock()
		if count := len(response.Results); count > 0 {
			session.land(response.Results[count-1].Id)
		}
		for _, result := range response.Results {
			slot := &session.pending[result.Id%maxUnanswered]
			if caller := *slot; caller != nil {
				*slot = nil
				caller.answers <- result
			}
		}
		for session.lowest < session.nextID && session.pending[session.lowest%maxUnanswered] == nil {
			session.lowest++
		}
		session.mutex.Unlock()
		select {
		case session.answered <- struct{}{}:
		default:
		}
	}
}

// land notes that an operation was answered: its message, and those before it, are no longer waited for.
func (session *session) land(id uint64) {
	for len(session.flights) > 0 && session.flights[0] <= id {
		session.flights = session.flights[1:]
	}
}

func (session *session) fail(err error) {
	session.mutex.Lock()
	defer session.mutex.Unlock()
	session.failure = err
	for slot, caller := range session.pending {
		if caller != nil {
			session.pending[slot] = nil
			close(caller.answers)
		}
	}
	for _, caller := range session.callers {
		close(caller.answers)
	}
	session.callers = nil
}

// sessionDriver is a caller with one operation under way.
type sessionDriver struct {
	session *session
	answers chan *pb.OperationResult
}

func newSessionDriver(session *session) *sessionDriver {
	session.driversCount.Add(1)
	return &sessionDriver{session, make(chan *pb.OperationResult, 1)}
}

func (driver *sessionDriver) call(operation *pb.Operation) (*pb.OperationResult, error) {
	if err := driver.session.submit(operation, driver); err != nil {
		return nil, err
	}
	result, open := <-driver.answers
	if !open {
		return nil, fmt.Errorf("the session broke: %v", driver.session.failure)
	}
	if failure := result.GetError(); failure != nil {
		return nil, fmt.Errorf("%s: %s", failure.Code, failure.Message)
	}
	return result, nil
}

func (driver *sessionDriver) write(request *pb.AtomicWriteRequest) (Version, error) {
	result, err := driver.call(&pb.Operation{Operation: &pb.Operation_Write{Write: request}})
	if err != nil {
		return nil, err
	}
	return written(result.GetWrite())
}

func (driver *sessionDriver) Put(_ context.Context, key, value []byte) error {
	_, err := driver.write(putRequest(key, value))
	return err
}

func (driver *sessionDriver) CompareAndPut(_ context.Context, key, value []byte, version Version) (Version, error) {
	return driver.write(checkAndSetRequest(key, value, version))
}

func (driver *sessionDriver) Get(_ context.Context, key []byte, strong bool) error {
	result, err := driver.call(&pb.Operation{Operation: &pb.Operation_Read{Read: getRequest(key, strong)}})
	if err != nil {
		return err
	}
	return found(result.GetRead())
}
