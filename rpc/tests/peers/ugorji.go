// The codec of ugorji under Go's net/rpc, in both roles; see README.md beside this file.
//
// Methods are called Service.Method and take one argument, hence Peer.Add([i, j]). Any message whose first byte is not 0x94
// ends the connection: a notification, an array16 header. Errors are texts.
package main

import (
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"sync"
	"time"

	"github.com/ugorji/go/codec"
)

type params = codec.MsgpackSpecRpcMultiArgs

func handle() *codec.MsgpackHandle {
	h := &codec.MsgpackHandle{WriteExt: true}
	h.RawToString = true
	return h
}

// Peer is the service. Its arguments are pointers so that nil is one of them.
type Peer struct {
	mutex sync.Mutex
	kept  []interface{}
}

func (p *Peer) Echo(value *interface{}, reply *interface{}) error {
	*reply = *value
	return nil
}

func (p *Peer) Add(pair []int64, reply *int64) error {
	if len(pair) != 2 {
		return fmt.Errorf("expected 2 numbers, got %d", len(pair))
	}
	*reply = pair[0] + pair[1]
	return nil
}

func (p *Peer) Fail(value *interface{}, reply *interface{}) error {
	if text, ok := (*value).(string); ok {
		return errors.New(text)
	}
	return fmt.Errorf("%v", *value)
}

func (p *Peer) Sleep(ms int64, reply *int64) error {
	time.Sleep(time.Duration(ms) * time.Millisecond)
	*reply = ms
	return nil
}

func (p *Peer) Note(value *interface{}, reply *interface{}) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	p.kept = append(p.kept, *value)
	return nil
}

func (p *Peer) Notes(_ *interface{}, reply *[]interface{}) error {
	p.mutex.Lock()
	defer p.mutex.Unlock()
	*reply, p.kept = append([]interface{}{}, p.kept...), nil
	return nil
}

func serve() error {
	if err := rpc.Register(&Peer{}); err != nil {
		return err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Printf("listening on %s\n", listener.Addr())
	for {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		go rpc.ServeCodec(codec.MsgpackSpecRpc.ServerCodec(conn, handle()))
	}
}

func outcome(result interface{}, err error) []interface{} {
	if err != nil {
		return []interface{}{"error", err.Error()}
	}
	return []interface{}{"ok", result}
}

func many(client *rpc.Client, calls []interface{}) []interface{} {
	type numbered struct {
		index   int
		outcome []interface{}
	}
	answers := make(chan numbered, len(calls))
	for index, each := range calls {
		call := each.([]interface{})
		reply := new(interface{})
		// Made one after the other, so that they are sent in this order.
		started := client.Go(call[0].(string), params(call[1].([]interface{})), reply, make(chan *rpc.Call, 1))
		go func(index int) {
			done := <-started.Done
			answers <- numbered{index, outcome(*reply, done.Error)}
		}(index)
	}
	ended := []interface{}{}
	for range calls {
		answer := <-answers
		ended = append(ended, []interface{}{answer.index, answer.outcome})
	}
	return outcome(ended, nil)
}

func call(address string) error {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return err
	}
	client := rpc.NewClientWithCodec(codec.MsgpackSpecRpc.ClientCodec(conn, handle()))
	for {
		var next interface{}
		if err := client.Call("next", params{}, &next); err != nil {
			return err
		}
		if next == nil {
			return nil
		}
		step := next.([]interface{})
		method, arguments := step[1].(string), step[2].([]interface{})
		report := []interface{}{"unable", nil}
		switch step[0].(string) {
		case "call":
			var result interface{}
			err := client.Call(method, params(arguments), &result)
			report = outcome(result, err)
		case "many":
			report = many(client, arguments)
		case "leave":
			client.Go(method, params(arguments), new(interface{}), nil)
			time.Sleep(100 * time.Millisecond)
			return conn.Close()
		}
		if err := client.Call("report", params{report}, new(interface{})); err != nil {
			return err
		}
	}
}

func main() {
	var err error
	if os.Args[1] == "serve" {
		err = serve()
	} else {
		err = call(net.JoinHostPort(os.Args[2], os.Args[3]))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
