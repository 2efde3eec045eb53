#!/usr/bin/env python3
"""Makes a container image without a builder or a registry: an archive as `docker save` writes it, with one layer.

    image.py OUT.tar NAME:TAG --file SOURCE:/path ... --program SOURCE:/path ... [--link TARGET:/path] [--busybox FILE]
             [--python INTERPRETER [--without PACKAGE]...]
             [--entrypoint WORD]... [--env K=V]... [--user UID[:GID]] [--label K=V]... [--bare]

--program brings the shared libraries of the program along, and leaves what debuggers read at home. --busybox adds it
and a link for each of its commands. --python brings an interpreter with its standard library and the packages that it
finds, but for those named by --without, all under the paths that they have here. --env takes the place of a PATH with the
usual folders. --bare leaves the usual folders and users out, as an image begun from scratch has it. Equal content gives equal bytes, so an image has one digest however often it is made.
"""

import argparse
import hashlib
import io
import json
import os
import pathlib
import platform
import posixpath
import subprocess
import tarfile
import tempfile

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
# What of a standard library and of packages no program in an image needs.
UNUSED = {"test", "tests", "idlelib", "lib2to3", "ensurepip", "tkinter", "turtledemo", "pydoc_data", "distutils", "venv",
          "site-packages", "dist-packages", "pip", "setuptools", "pkg_resources", "_tkinter", "_curses",
          "_curses_panel", "_dbm", "_gdbm", "_sqlite3", "readline", "_testcapi", "_testclinic", "_testinternalcapi"}
UNUSED_ENDINGS = (".opt-1.pyc", ".opt-2.pyc", ".pyi", ".pyx", ".pxd", ".h", ".a")
PARTS = """if True:
    import json, sys, sysconfig
    paths = sysconfig.get_paths()
    print(json.dumps({"program": sys.executable, "prefix": sys.prefix, "standard": [paths["stdlib"], paths["platstdlib"]],
                      "packages": [paths["purelib"], paths["platlib"]]}))
"""
FOLDERS = {"tmp": 0o1777, "etc": 0o755, "proc": 0o755, "sys": 0o755, "dev": 0o755, "run": 0o755}


def main():
    arguments = parse()
    layer = Layer()
    if not arguments.bare:
        for folder, mode in FOLDERS.items():
            layer.folder(folder, mode)
        layer.bytes("etc/passwd", b"root:x:0:0:root:/:/bin/sh\nnonroot:x:1000:1000:nonroot:/:/bin/sh\n")
        layer.bytes("etc/group", b"root:x:0:\nnonroot:x:1000:\n")
    if arguments.busybox:
        layer.busybox(arguments.busybox)
    for source, target in map(split, arguments.file):
        layer.file(source, target)
    for source, target in map(split, arguments.program):
        layer.program(source, target)
    for source, target in map(split, arguments.link):
        layer.link(source, target)
    if arguments.python:
        layer.python(arguments.python, UNUSED | set(arguments.without))
    save(arguments, layer.finish())


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("name")
    parser.add_argument("--busybox")
    parser.add_argument("--bare", action="store_true")
    parser.add_argument("--user", default="")
    parser.add_argument("--python")
    for option in ("file", "program", "link", "without", "entrypoint", "env", "label"):
        parser.add_argument(f"--{option}", action="append", default=[])
    return parser.parse_args()


def split(pair):
    source, target = pair.rsplit(":", 1)
    return source, target


class Layer:
    """One layer, with each parent folder of a file in it."""

    def __init__(self):
        self.buffer = io.BytesIO()
        self.tar = tarfile.open(fileobj=self.buffer, mode="w", format=tarfile.GNU_FORMAT)
        self.seen = set()

    def add(self, path, kind, mode, content=b"", target="", mtime=0):
        path = posixpath.normpath(path).strip("/")
        if path in self.seen:
            return
        parent = posixpath.dirname(path)
        if parent and parent not in self.seen:
            self.folder(parent, 0o755)
        self.seen.add(path)
        entry = tarfile.TarInfo(path)
        entry.type, entry.mode, entry.size, entry.linkname, entry.mtime = kind, mode, len(content), target, mtime
        self.tar.addfile(entry, io.BytesIO(content))

    def folder(self, path, mode):
        self.add(path, tarfile.DIRTYPE, mode)

    def bytes(self, path, content, mode=0o644):
        self.add(path, tarfile.REGTYPE, mode, content)

    def link(self, target, path):
        self.add(path, tarfile.SYMTYPE, 0o777, target=target)

    def file(self, source, path):
        source = pathlib.Path(source)
        self.bytes(path, source.read_bytes(), source.stat().st_mode & 0o777)

    def program(self, source, path):
        self.bytes(path, stripped(source), 0o755)
        self.libraries(source)

    def libraries(self, *programs):
        listed = subprocess.run(["ldd", *programs], capture_output=True, text=True)
        for line in listed.stdout.splitlines():
            # "libc.so.6 => /lib/…/libc.so.6 (0x…)", the loader alone by its path, or a program's path and a colon
            library = next((word for word in line.split() if word.startswith("/") and not word.endswith(":")), None)
            if library:
                self.bytes(library, stripped(library), 0o755)

    def python(self, interpreter, unused):
        asked = subprocess.run([interpreter, "-c", PARTS], capture_output=True, text=True, check=True)
        parts = json.loads(asked.stdout)
        program = parts["program"]
        while os.path.islink(program):
            target = os.readlink(program)
            self.link(target, program)
            program = os.path.normpath(os.path.join(os.path.dirname(program), target))
        self.program(program, program)
        settings = os.path.join(parts["prefix"], "pyvenv.cfg")
        if os.path.exists(settings):
            self.file(settings, settings)
        for tree in parts["standard"] + parts["packages"]:
            self.tree(tree, unused)

    def tree(self, source, unused):
        """A folder under its own path. Times stay: compiled modules are good for sources of one time alone."""
        libraries = []
        for folder, inner, files in os.walk(source):
            inner[:] = sorted(name for name in inner if name not in unused and not name.startswith("config-"))
            for name in sorted(files):
                path = pathlib.Path(folder, name)
                if path.is_file() and not name.endswith(UNUSED_ENDINGS) and name.split(".")[0] not in unused:
                    mtime = int(path.stat().st_mtime)
                    is_library = ".so" in path.suffixes
                    content = stripped(path) if is_library else path.read_bytes()
                    self.add(str(path), tarfile.REGTYPE, 0o644, content, mtime=mtime)
                    libraries += [path] if is_library else []
        if libraries:
            self.libraries(*libraries)

    def busybox(self, source):
        self.bytes("bin/busybox", pathlib.Path(source).read_bytes(), 0o755)
        commands = subprocess.run([source, "--list"], capture_output=True, text=True, check=True)
        for command in commands.stdout.split():
            self.link("busybox", f"bin/{command}")

    def finish(self):
        self.tar.close()
        return self.buffer.getvalue()


def stripped(source):
    """The program without debugging information, most of a debug build; as it is where it is small or there is no `strip`."""
    if os.path.getsize(source) < 1 << 20:
        return pathlib.Path(source).read_bytes()
    with tempfile.NamedTemporaryFile() as target:
        try:
            subprocess.run(["strip", "--strip-debug", "-o", target.name, source], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            return pathlib.Path(source).read_bytes()
        return pathlib.Path(target.name).read_bytes()


def save(arguments, layer):
    config = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {
            "Entrypoint": arguments.entrypoint,
            "Env": arguments.env or ["PATH=/bin:/sbin:/usr/bin:/usr/sbin"],
            "User": arguments.user,
            "WorkingDir": "/",
            "Labels": dict(label.split("=", 1) for label in arguments.label),
        },
        "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(layer).hexdigest()]},
        "history": [{"created_by": "image.py"}],
    }
    config = json.dumps(config, sort_keys=True).encode()
    digest = hashlib.sha256(config).hexdigest()
    manifest = [{"Config": f"{digest}.json", "RepoTags": [arguments.name], "Layers": ["layer.tar"]}]
    with tarfile.open(arguments.out, "w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in (("layer.tar", layer), (f"{digest}.json", config), ("manifest.json", json.dumps(manifest).encode())):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    print(f"sha256:{digest}")


main()
