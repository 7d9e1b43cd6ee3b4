// The long-tail server in Go: a goroutine for each connection; the first byte of a request says whether to wait or compute.
//
// Run: GOMAXPROCS=2 go run ./tail 127.0.0.1:7000
package main

import (
	"io"
	"log"
	"net"
	"os"
	"time"
)

const slow = 5 * time.Millisecond

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	for {
		connection, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go answer(connection)
	}
}

func answer(connection net.Conn) {
	defer connection.Close()
	message := make([]byte, 64)
	for {
		if _, err := io.ReadFull(connection, message); err != nil {
			return
		}
		switch message[0] {
		case 1:
			time.Sleep(slow)
		case 2:
			compute()
		}
		if _, err := connection.Write(message); err != nil {
			return
		}
	}
}

func compute() {
	for began := time.Now(); time.Since(began) < slow; {
	}
}
