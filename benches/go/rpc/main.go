// The echo server of the RPC table in Go: net/rpc with gob, its own default; Go's sockets have no delay by default.
//
// Run: GOMAXPROCS=1 go run ./rpc 127.0.0.1:7000
package main

import (
	"log"
	"net"
	"net/rpc"
	"os"
)

// Echo is the service.
type Echo struct{}

// Echo answers with what it was given.
func (Echo) Echo(payload []byte, answer *[]byte) error {
	*answer = payload
	return nil
}

func main() {
	if err := rpc.Register(Echo{}); err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	rpc.Accept(listener)
}
