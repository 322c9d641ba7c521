"""Ways into a port of Ray's for somebody who has no secret of it."""

from __future__ import annotations

import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import grpc

from services.supervisor.embedded import ray_tls

_REFUSALS = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}


def enters_ray(home: Path, port: int) -> bool:
    """Reading the cluster, running a task, leasing a worker, writing an object, its own stream between nodes: each port
    of Ray has one of these. Without its certificate none gets as far as to be refused."""
    calls = ("NodeInfoGcsService/GetAllNodeInfo", "InternalKVGcsService/InternalKVGet", "CoreWorkerService/PushTask")
    calls += ("NodeManagerService/RequestWorkerLease", "ObjectManagerService/Push", "syncer.RaySyncer/StartSync")
    certificate = home / "ray" / "tls.pem"
    holder = ray_tls.credentials(certificate)
    codes: dict[bool, list[grpc.StatusCode]] = {False: [], True: []}
    for credentials in (None, grpc.ssl_channel_credentials(certificate.read_bytes()), holder):
        address, options = f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]
        channel = grpc.secure_channel(address, credentials, options) if credentials else None
        with channel or grpc.insecure_channel(address, options) as channel:
            # The stream aborts who takes it from a holder of the certificate without a token: docs/ray-syncer-abort.md.
            for call in calls if credentials is not holder else calls[:-1]:
                for token in (None, "Bearer wrong"):
                    metadata = (("authorization", token),) if token else ()
                    method = channel.unary_unary(f"/ray.rpc.{call}")
                    found = status_of(lambda method=method, metadata=metadata: method(b"", 10, metadata))
                    codes[credentials is holder].append(found)
    # One that has none of these is not what we take it for.
    closed = grpc.StatusCode.UNAUTHENTICATED in codes[True] and set(codes[True]) <= _REFUSALS
    return not closed or set(codes[False]) != {grpc.StatusCode.UNAVAILABLE}


def enters_rays_http(port: int) -> bool:
    """Submitting a job, and making an environment, is running code."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for path in ("/api/job_agent/jobs/", "/get_or_create_runtime_env", "/metrics"):
        for token in ("", "Bearer wrong"):
            headers = {"Authorization": token, "Content-Type": "application/json"} if token else {}
            request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", b'{"entrypoint": "id"}', headers)
            try:
                opener.open(request, timeout=10)
            except urllib.error.HTTPError as error:
                if error.code in (401, 403):
                    continue
            return True
    return False


def enters_ray_or(other: Callable[[int], bool]) -> Callable[[Path, int], bool]:
    """Of a process that listens for Ray and for something else, on one port each."""
    return lambda home, port: enters_ray(home, port) if _is_rays(home, port) else other(port)


def _is_rays(home: Path, port: int) -> bool:
    """Whether it takes a client with Ray's certificate."""
    context = ssl.create_default_context(cafile=str(home / "ray" / "tls.pem"))
    context.load_cert_chain(home / "ray" / "tls.pem")
    with socket.create_connection(("127.0.0.1", port), 5) as connection:
        try:
            context.wrap_socket(connection, server_hostname="127.0.0.1").close()
        except OSError:
            return False
        return True


def status_of(call: Callable[[], object]) -> grpc.StatusCode:
    try:
        call()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined]
    return grpc.StatusCode.OK
