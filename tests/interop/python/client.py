"""A workload in Python, over the unchanged py-spiffe packages.

    client.py                       answers commands, see ../session.rs
    client.py serve PORT | dial PORT EXPECTED_ID SECONDS

The Workload API's address is taken from SPIFFE_ENDPOINT_SOCKET.
"""

import json
import os
import sys
import threading
import time

import grpc
import jwt as pyjwt
from spiffe import JwtSvid, SpiffeId, TrustDomain, WorkloadApiClient, X509Source
from spiffetls import ListenOptions, dial, listen
from spiffetls.mode import ClientTlsMode, ServerTlsMode
from spiffetls.tlsconfig.authorize import authorize_id, authorize_member_of

ENDPOINT = os.environ["SPIFFE_ENDPOINT_SOCKET"]


def say(*words):
    print(*words, flush=True)


def tell(**fields):
    say(json.dumps(fields))


class Workload:
    """The commands of ../session.rs."""

    TIMEOUT = 20

    def __init__(self):
        self.client = WorkloadApiClient(ENDPOINT, default_timeout=self.TIMEOUT)

    def x509(self):
        return self.summary(self.client.fetch_x509_context())

    def watch(self):
        handler = self.client.stream_x509_contexts(
            lambda context: tell(event="update", **self.summary(context)),
            lambda error: tell(event="given up", message=str(error)),
        )
        threading.Thread(target=self.follow, args=(handler,), daemon=True).start()
        return {}

    def jwt(self, audience):
        svid = self.client.fetch_jwt_svid({audience})
        return {"ids": [str(svid.spiffe_id)], "token": svid.token}

    def verify(self, token, audience):
        subject = pyjwt.decode(token, options={"verify_signature": False})["sub"]
        bundles = self.client.fetch_jwt_bundles()
        bundle = bundles.get_bundle_for_trust_domain(SpiffeId(subject).trust_domain)
        return {"ids": [str(JwtSvid.parse_and_validate(token, bundle, {audience}).spiffe_id)]}

    def validate(self, token, audience):
        return {"ids": [str(self.client.validate_jwt_svid(token, audience).spiffe_id)]}

    @staticmethod
    def summary(context):
        default = context.default_svid
        own = context.x509_bundle_set.get_bundle_for_trust_domain(default.spiffe_id.trust_domain)
        return {
            "ids": [str(svid.spiffe_id) for svid in context.x509_svids],
            "serial": format(default.leaf.serial_number, "x"),
            "authorities": len(own.x509_authorities),
        }

    @staticmethod
    def follow(handler):
        """The library opens the stream anew by itself and tells nobody why the last one ended; its calls do."""
        last = None
        while True:
            call = handler.response_iterator
            if call is None or call is last:
                time.sleep(0.01)
                continue
            code, details = call.code(), call.details()  # returns when the call has ended
            tell(event="ended", code=code.name, message=details)
            last = call


def failure(error):
    """What the server said, if it was the server; else what the library says."""
    cause = error
    while cause is not None:
        if isinstance(cause, grpc.Call):
            return {"code": cause.code().name, "message": cause.details()}
        cause = cause.__cause__
    return {"code": "", "message": str(error)}


def answer_commands():
    workload = Workload()
    for line in sys.stdin:
        command, *words = line.split()
        try:
            tell(reply=command, **getattr(workload, command)(*words))
        except Exception as error:
            tell(reply=command, error=failure(error))


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


COMMANDS = {"serve": serve, "dial": dial_loop}
if len(sys.argv) > 1:
    COMMANDS[sys.argv[1]](*sys.argv[2:])
    say("done")
else:
    answer_commands()
os._exit(0)  # the sources' threads must not keep a finished command alive
