"""A workload in Python, over the unchanged py-spiffe packages.

    client.py x509 | jwt AUDIENCE | validate TOKEN AUDIENCE | watch COUNT
              | serve PORT | dial PORT EXPECTED_ID SECONDS

The Workload API's address is taken from SPIFFE_ENDPOINT_SOCKET. Each result is one line; the exit
status is 0 only if everything asked for was seen.
"""

import os
import sys
import threading
import time

from spiffe import JwtSource, JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient, X509Source
from spiffetls import ListenOptions, dial, listen
from spiffetls.mode import ClientTlsMode, ServerTlsMode
from spiffetls.tlsconfig.authorize import authorize_id, authorize_member_of

ENDPOINT = os.environ["SPIFFE_ENDPOINT_SOCKET"]


def say(*words):
    print(*words, flush=True)


def x509():
    with X509Source(socket_path=ENDPOINT, timeout_in_seconds=20) as source:
        for svid in source.get_x509_context().x509_svids:
            say("id", svid.spiffe_id)


def jwt(audience):
    with JwtSource(socket_path=ENDPOINT, timeout_in_seconds=20) as source:
        svid = source.fetch_svid(audience={audience})
        own = source.get_bundle_for_trust_domain(svid.spiffe_id.trust_domain)
        checked = JwtSvid.parse_and_validate(svid.token, own, {audience})
        say("token", svid.token)
        say("id", checked.spiffe_id)
    with WorkloadApiClient(ENDPOINT) as client:
        say("validated", client.validate_jwt_svid(svid.token, audience).spiffe_id)


def validate(token, audience):
    with WorkloadApiClient(ENDPOINT) as client:
        say("validated", client.validate_jwt_svid(token, audience).spiffe_id)


def watch(count):
    wanted = int(count)
    done = threading.Event()
    seen = []

    with X509Source(socket_path=ENDPOINT, timeout_in_seconds=20) as source:

        def update():
            leaf = source.svid.leaf
            seen.append(leaf.serial_number)
            say("update", len(seen), source.svid.spiffe_id, format(leaf.serial_number, "x"))
            if len(seen) >= wanted:
                done.set()

        source.subscribe_for_updates(update)
        update()
        if not done.wait(180):
            raise SystemExit(f"saw {len(seen)} updates of {wanted}")


def serve(port):
    source = X509Source(socket_path=ENDPOINT, timeout_in_seconds=20)
    domain = TrustDomain(str(source.svid.spiffe_id.trust_domain))
    options = ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=authorize_member_of(domain), backlog=64)
    server = listen(f"127.0.0.1:{port}", source, options)
    say("listening", port)
    while True:
        connection, _ = server.accept()
        try:
            connection.sendall(b"echo " + connection.recv(100))
            connection.shutdown()
        except Exception as error:  # the dialling side counts failures
            say("connection failed:", repr(error))
        finally:
            connection.close()


def dial_loop(port, expected, seconds):
    source = X509Source(socket_path=ENDPOINT, timeout_in_seconds=20)
    until = time.monotonic() + float(seconds)
    serials, handshakes = set(), 0
    while time.monotonic() < until:
        connection = dial(f"127.0.0.1:{port}", source, ClientTlsMode.TLS, authorize_id(SpiffeId(expected)))
        connection.sendall(b"ping")
        answer = b""
        while len(answer) < len(b"echo ping"):
            answer += connection.recv(100)
        if answer != b"echo ping":
            raise SystemExit(f"unexpected answer {answer!r}")
        connection.close()
        handshakes += 1
        serials.add(source.svid.leaf.serial_number)
        time.sleep(0.2)
    say("handshakes", handshakes, "certificates", len(serials))


COMMANDS = {"x509": x509, "jwt": jwt, "validate": validate, "watch": watch, "serve": serve, "dial": dial_loop}
COMMANDS[sys.argv[1]](*sys.argv[2:])
say("done")
os._exit(0)  # the sources' threads must not keep a finished command alive
