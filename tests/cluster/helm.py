#!/usr/bin/env python3
"""Drives Helm's own engine (the Python package helm-python-sdk) against the cluster that KUBECONFIG names.

    helm.py install   RELEASE CHART [options]     helm.py rollback  RELEASE [--revision N] [options]
    helm.py upgrade   RELEASE CHART [options]     helm.py uninstall RELEASE [options]
    helm.py test      RELEASE [options]           helm.py history   RELEASE [options]

    --namespace NAME    default unless told; install makes it when it is not there
    --values FILE       YAML; later files win, value by value. Repeatable
    --set KEY=VALUE     as Helm's. Repeatable, after the files
    --install           of upgrade: a release that is not there is installed
    --create-namespace  taken for granted
    --reset-then-reuse-values
                        of upgrade: the chart's values, then those of the last release, then the ones given here
    --timeout SECONDS   120
    --no-wait           return when the objects are written, and not when they are ready

Prints one JSON document; exits 1 with the engine's own sentence on standard error.
"""

import argparse
import json
import os
import pathlib
import sys

import helm_python as helm


def main():
    arguments = parse()
    wait = None if arguments.no_wait else "watcher"
    # The default of five requests a second is for people.
    config = helm.Config(kubeconfig_path=os.environ["KUBECONFIG"], namespace=arguments.namespace, qps=100, burst_limit=200)
    with config:
        answer = run(config, arguments, {"timeout": arguments.timeout, "wait": wait})
    json.dump(answer, sys.stdout, indent=2)
    print()


def run(config, arguments, waiting):
    name, namespace = arguments.release, arguments.namespace
    match arguments.command:
        case "install":
            return install(config, arguments, waiting)
        case "upgrade" if arguments.install and not is_installed(config, name):
            return install(config, arguments, waiting)
        case "upgrade":
            given = config.get_values(name) if arguments.reset_then_reuse_values else {}
            merge(given, values(arguments))
            return config.upgrade(arguments.chart, name, given, namespace=namespace, reset_values=True, **waiting)
        case "rollback":
            config.rollback(name, version=arguments.revision, **waiting)
            return config.status(name)
        case "uninstall":
            return config.uninstall(name, **waiting)
        case "test":
            return config.test(name, timeout=arguments.timeout, logs=True)
        case "history":
            return config.history(name)


def install(config, arguments, waiting):
    return config.install(
        arguments.chart, arguments.release, values(arguments), namespace=arguments.namespace, create_namespace=True, **waiting)


def is_installed(config, name):
    try:
        config.status(name)
    except helm.HelmNotFoundError:
        return False
    return True


def values(arguments):
    merged = {}
    for file in arguments.values:
        merge(merged, helm.values_from_yaml(pathlib.Path(file).read_text()))
    for expression in arguments.set:
        merge(merged, helm.parse_set_string(expression))
    return merged


def merge(into, other):
    for key, value in other.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("install", "upgrade", "rollback", "uninstall", "test", "history"):
        command = commands.add_parser(name)
        command.add_argument("release")
        if name in ("install", "upgrade"):
            command.add_argument("chart")
            command.add_argument("--values", action="append", default=[])
            command.add_argument("--set", action="append", default=[])
            command.add_argument("--create-namespace", action="store_true")
        if name == "upgrade":
            command.add_argument("--install", action="store_true")
            command.add_argument("--reset-then-reuse-values", action="store_true")
        if name == "rollback":
            command.add_argument("--revision", type=int)
        command.add_argument("--namespace", default="default")
        command.add_argument("--timeout", type=int, default=120)
        command.add_argument("--no-wait", action="store_true")
    return parser.parse_args()


try:
    main()
except helm.HelmError as error:
    sys.exit(f"{type(error).__name__}: {error}")
