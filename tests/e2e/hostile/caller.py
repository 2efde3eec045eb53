# What every scenario begins with: a client that speaks just enough HTTP/2 to be a nuisance.
import os, re, socket, struct, sys

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, GOAWAY = 0, 1, 3, 4, 7


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def literal(name, value):
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


REQUEST = (
    b"\x83\x86"
    + b"\x04" + bytes([len(b"/SpiffeWorkloadAPI/FetchX509SVID")]) + b"/SpiffeWorkloadAPI/FetchX509SVID"
    + literal(b"content-type", b"application/grpc")
    + literal(b"te", b"trailers")
    + literal(b"workload.spiffe.io", b"true")
)


def request(stream):
    return frame(HEADERS, 4, stream, REQUEST) + frame(DATA, 1, stream, bytes(5))


def exactly(sock, count):
    got = b""
    while len(got) < count:
        more = sock.recv(count - len(got))
        if not more:
            raise EOFError
        got += more
    return got


def receive(sock):
    head = exactly(sock, 9)
    length = int.from_bytes(head[:3], "big")
    return head[3], head[4], int.from_bytes(head[5:], "big"), exactly(sock, length)


def connect(path):
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(30)
    sock.connect(path)
    sock.sendall(PREFACE + frame(SETTINGS, 0, 0))
    return sock


def accepted(sock):
    """Comes back when the agent has taken the connection."""
    while receive(sock)[0] != SETTINGS:
        pass
    return sock


def call(sock, stream=1):
    """The first SPIFFE ID of the first answer, or how it was not given."""
    try:
        sock.sendall(request(stream))
        while True:
            kind, flags, number, payload = receive(sock)
            if kind == GOAWAY:
                return "closed"
            if number != stream:
                continue
            if kind == DATA and payload:
                return re.search(rb"spiffe://[A-Za-z0-9./_-]+", payload).group().decode()
            if kind == RST_STREAM or (kind == HEADERS and flags & 1):
                return "refused"
    except (EOFError, ConnectionError):
        return "closed"


def say(*words):
    print(*words, flush=True)


path = sys.argv[1]
