"""Helm's engine as a program: one JSON request a line on standard input, one JSON answer a line on standard output.

    {"do": "render", "chart": PATH, "values": {}, "kube_version": "1.33.0", "namespace": "finial"}
                                        -> {"files": {"templates/a.yaml": [object, …]}, "notes": TEXT}
    {"do": "lint", "chart": PATH, "values": {}, "kube_version": "1.33.0"}   -> {"findings": [TEXT, …]}
    {"do": "values", "chart": PATH}                                        -> {"values": {}}
    {"do": "yaml", "text": TEXT}                                           -> {"values": {}}
    {"do": "crds", "chart": PATH}                                          -> {"objects": [object, …]}

What the engine refuses is {"refused": its message}.
"""

import json
import sys

import helm_python as helm
from helm_python import _native
from helm_python.chart import lint

charts = {}


def chart(request):
    path = request["chart"]
    if path not in charts:
        charts[path] = helm.Chart.load(path)
    return charts[path]


def documents(text):
    document = []
    for line in text.splitlines() + ["---"]:
        if line.rstrip() != "---":
            document.append(line)
            continue
        if any(part.strip() and not part.lstrip().startswith("#") for part in document):
            yield helm.values_from_yaml("\n".join(document))
        document = []


def render(request):
    # The package's own method does not pass the version of Kubernetes on.
    options = {"name": "finial", "namespace": request["namespace"], "kube_version": request["kube_version"]}
    rendered = json.loads(
        _native.call_string(
            "helm_render", chart(request)._raw(), json.dumps(request["values"]), json.dumps(options)
        )
    )
    files, notes = {}, ""
    for name, text in rendered.items():
        name = name.split("/", 1)[1]
        if name.endswith("NOTES.txt"):
            notes = text
        elif found := list(documents(text)):
            files[name] = found
    return {"files": files, "notes": notes}


def findings(request):
    report = lint(
        request["chart"],
        request["values"],
        strict=True,
        namespace="finial",
        kube_version=request["kube_version"],
    )
    worse_than_information = [
        f"{message['path']}: {message['error']}" for message in report["messages"] if message["severity"] > 1
    ]
    return {"findings": worse_than_information + report["errors"]}


def crds(request):
    found = [helm.values_from_yaml(text["data"]) for text in chart(request).crds]
    return {"objects": found}


actions = {
    "render": render,
    "lint": findings,
    "values": lambda request: {"values": chart(request).values},
    "yaml": lambda request: {"values": helm.values_from_yaml(request["text"])},
    "crds": crds,
}

for line in sys.stdin:
    request = json.loads(line)
    try:
        answer = actions[request["do"]](request)
    except helm.HelmError as error:
        answer = {"refused": str(error)}
    print(json.dumps(answer), flush=True)
