// A workload in Go, over the unchanged go-spiffe module.
//
//	client x509 | jwt AUDIENCE | validate TOKEN AUDIENCE | watch COUNT
//
// The Workload API's address is taken from SPIFFE_ENDPOINT_SOCKET.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("done")
}

func run(ctx context.Context, args []string) error {
	switch args[0] {
	case "x509":
		return x509(ctx)
	case "jwt":
		return fetchJWT(ctx, args[1])
	case "validate":
		svid, err := workloadapi.ValidateJWTSVID(ctx, args[1], args[2])
		if err != nil {
			return err
		}
		fmt.Println("validated", svid.ID)
		return nil
	case "watch":
		count, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return watch(ctx, count)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

func x509(ctx context.Context) error {
	svids, err := workloadapi.FetchX509SVIDs(ctx)
	if err != nil {
		return err
	}
	for _, svid := range svids {
		fmt.Println("id", svid.ID)
	}
	return nil
}

func fetchJWT(ctx context.Context, audience string) error {
	source, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.FetchJWTSVID(ctx, jwtsvid.Params{Audience: audience})
	if err != nil {
		return err
	}
	token := svid.Marshal()
	checked, err := jwtsvid.ParseAndValidate(token, source, []string{audience})
	if err != nil {
		return err
	}
	fmt.Println("token", token)
	fmt.Println("id", checked.ID)
	validated, err := workloadapi.ValidateJWTSVID(ctx, token, audience)
	if err != nil {
		return err
	}
	fmt.Println("validated", validated.ID)
	return nil
}

type watcher struct {
	updates chan *workloadapi.X509Context
	failed  chan error
}

func (w watcher) OnX509ContextUpdate(c *workloadapi.X509Context) { w.updates <- c }
func (w watcher) OnX509ContextWatchError(err error)              { w.failed <- err }

func watch(ctx context.Context, count int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w := watcher{updates: make(chan *workloadapi.X509Context, 16), failed: make(chan error, 16)}
	go func() { w.failed <- workloadapi.WatchX509Context(ctx, w) }()
	for seen := 1; seen <= count; {
		select {
		case update := <-w.updates:
			svid := update.DefaultSVID()
			fmt.Println("update", seen, svid.ID, svid.Certificates[0].SerialNumber.Text(16))
			seen++
		case err := <-w.failed:
			if errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
				return err
			}
			fmt.Println("watch error:", err)
		}
	}
	return nil
}
