"""Keeps one cluster: its cgroups, its namespaces' first process, and the end of both.

    keeper.py keep DIR OWNER MINUTES NODE...   until SIGTERM, the end of process OWNER (0: nobody), or MINUTES; DIR goes
                                               with its owner, for nobody is left to look into it
    keeper.py clean DIR                        what a keeper that was killed has left

Everything of a cluster is a descendant of one process that is the first of its PID namespace, so one kill ends it.
That process dies with this one. While this one lives it holds a lock on DIR/lock.
"""

import fcntl
import os
import pathlib
import select
import shutil
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent


def main():
    command, directory, *rest = sys.argv[1:]
    directory = pathlib.Path(directory)
    lock = open(directory / "lock", "w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if command == "clean":
        clean(directory)
        return
    owner, minutes, *nodes = rest
    (directory / "keeper").write_text(f"{os.getpid()}\n")
    clean(directory)
    reason = "not started"
    try:
        reason = keep(directory, int(owner), float(minutes), nodes)
    finally:
        clean(directory)
        (directory / "ended").write_text(f"{reason}\n")
        if reason.startswith("its owner"):
            shutil.rmtree(directory, ignore_errors=True)


def keep(directory, owner, minutes, nodes):
    stop, stopping = os.pipe()
    os.set_blocking(stopping, False)
    signal.set_wakeup_fd(stopping)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda *_: None)

    make_cgroups(directory, nodes)
    # --propagation private comes before --mount-proc: else the machine's own /proc would be covered.
    child = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount", "--propagation", "private", "--net", "--uts", "--ipc",
         "--pid", "--fork", "--kill-child", "--mount-proc", "bash", HERE / "inside/cluster", directory, *nodes],
        stdin=subprocess.DEVNULL)
    try:
        first = first_child(child)
        (directory / "pid").write_text(f"{first}\n")
        poll = select.poll()
        reasons = {stop: "told to", os.pidfd_open(child.pid): "a part of it ended: see log/"}
        if owner:
            reasons[os.pidfd_open(owner)] = f"its owner, process {owner}, ended"
        for descriptor in reasons:
            poll.register(descriptor, select.POLLIN)
        events = poll.poll(minutes * 60_000)
        return reasons[events[0][0]] if events else f"{minutes:g} minutes were over"
    except ProcessLookupError:
        return f"its owner, process {owner}, had ended"
    finally:
        # The namespace's first process ends when the last one of the namespace is gone, and unshare after it.
        child.kill()
        child.wait()
        wait_gone(directory / "pid")


def first_child(parent):
    """The process that `unshare` forked: the first of the PID namespace, by its number out here."""
    children = pathlib.Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    for _ in range(500):
        if parent.poll() is not None:
            raise SystemExit("unshare ended: is this root?")
        found = children.read_text().split()
        if found:
            return int(found[0])
        time.sleep(0.01)
    raise SystemExit("unshare has no child")


def wait_gone(file):
    if not file.exists():
        return
    process = pathlib.Path("/proc") / file.read_text().strip()
    for _ in range(500):
        if not process.exists():
            break
        time.sleep(0.02)
    file.unlink()


def make_cgroups(directory, nodes):
    """One cgroup for the cluster below this process's own, and one per node in it, in each hierarchy of version 1.

    A node takes its own for the root of a cgroup namespace, so that the kubelet finds a tree of its own and nobody
    else's, and all that the cluster has made lies in one place when it is gone."""
    name = f"finial-cluster-{os.getpid()}"
    lines = []
    for controllers, path in hierarchies():
        cluster = path / name
        for folder in [cluster, *(cluster / node for node in nodes)]:
            folder.mkdir()
            if "cpuset" in controllers.split(","):
                for file in ("cpuset.cpus", "cpuset.mems"):
                    (folder / file).write_text((folder.parent / file).read_text())
        lines.append(f"{controllers} {cluster}\n")
    if not lines:
        raise SystemExit("no cgroup hierarchy of version 1 is mounted: the cluster was made for those")
    (directory / "cgroups").write_text("".join(lines))


def hierarchies():
    """Controllers (as mounted) and this process's own folder of each mounted hierarchy of version 1."""
    mounted = {}
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ", 1)
        _, _, _, root, point, *_ = before.split()
        kind, _, options = after.split(" ", 2)
        if kind == "cgroup" and root == "/":
            mounted[point] = set(options.split(","))
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for point, options in mounted.items():
            if controllers and set(controllers.split(",")) <= options:
                yield controllers, pathlib.Path(point + path)
                break


def clean(directory):
    """Removes what outlives the namespaces: the cgroups, the nodes' data, the keys. Logs stay."""
    for file in ("pid", "ready", "kubeconfig"):
        (directory / file).unlink(missing_ok=True)
    listed = directory / "cgroups"
    if listed.exists():
        for line in listed.read_text().splitlines():
            remove_cgroup(pathlib.Path(line.split(" ", 1)[1]))
        listed.unlink()
    for folder in ("data", "pki", "nodes"):
        shutil.rmtree(directory / folder, ignore_errors=True)


def remove_cgroup(folder):
    for _ in range(250):
        if not folder.exists():
            return
        for inner, _, _ in os.walk(folder, topdown=False):
            try:
                os.rmdir(inner)
            except OSError:
                pass  # a process that was killed is still leaving it
        time.sleep(0.02)
    print(f"left behind: {folder}", file=sys.stderr)


main()
