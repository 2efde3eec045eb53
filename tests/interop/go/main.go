// A workload in Go, over the unchanged go-spiffe module. It answers the commands that ../session.rs describes; the
// Workload API's address is taken from SPIFFE_ENDPOINT_SOCKET.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/status"
)

const timeout = 20 * time.Second

type fields map[string]any

var printing sync.Mutex

func tell(message fields) {
	line, err := json.Marshal(message)
	if err != nil {
		panic(err)
	}
	printing.Lock()
	defer printing.Unlock()
	fmt.Println(string(line))
}

func main() {
	client, err := workloadapi.New(context.Background())
	if err != nil {
		panic(err)
	}
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		words := strings.Fields(lines.Text())
		reply, err := answer(client, words[0], words[1:])
		if err != nil {
			reply = fields{"error": failure(err)}
		}
		reply["reply"] = words[0]
		tell(reply)
	}
}

func answer(client *workloadapi.Client, command string, words []string) (fields, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	switch command {
	case "x509":
		update, err := client.FetchX509Context(ctx)
		if err != nil {
			return nil, err
		}
		return summary(update)
	case "watch":
		go func() {
			err := client.WatchX509Context(context.Background(), watcher{})
			tell(fields{"event": "given up", "message": err.Error()})
		}()
		return fields{}, nil
	case "jwt":
		svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: words[0]})
		if err != nil {
			return nil, err
		}
		return fields{"ids": []string{svid.ID.String()}, "token": svid.Marshal()}, nil
	case "verify":
		bundles, err := client.FetchJWTBundles(ctx)
		if err != nil {
			return nil, err
		}
		return subject(jwtsvid.ParseAndValidate(words[0], bundles, []string{words[1]}))
	case "validate":
		return subject(client.ValidateJWTSVID(ctx, words[0], words[1]))
	}
	return nil, fmt.Errorf("unknown command %q", command)
}

func subject(svid *jwtsvid.SVID, err error) (fields, error) {
	if err != nil {
		return nil, err
	}
	return fields{"ids": []string{svid.ID.String()}}, nil
}

func summary(update *workloadapi.X509Context) (fields, error) {
	first := update.DefaultSVID()
	own, err := update.Bundles.GetX509BundleForTrustDomain(first.ID.TrustDomain())
	if err != nil {
		return nil, err
	}
	ids := []string{}
	for _, svid := range update.SVIDs {
		ids = append(ids, svid.ID.String())
	}
	return fields{
		"ids":         ids,
		"serial":      first.Certificates[0].SerialNumber.Text(16),
		"authorities": len(own.X509Authorities()),
	}, nil
}

func failure(err error) fields {
	if from, ok := status.FromError(err); ok {
		return fields{"code": from.Code().String(), "message": from.Message()}
	}
	return fields{"code": "", "message": err.Error()}
}

type watcher struct{}

func (watcher) OnX509ContextUpdate(update *workloadapi.X509Context) {
	event, err := summary(update)
	if err != nil {
		event = fields{"message": err.Error()}
	}
	event["event"] = "update"
	tell(event)
}

func (watcher) OnX509ContextWatchError(err error) {
	event := failure(err)
	event["event"] = "ended"
	tell(event)
}
