"""A disk with less room than the settings want: the service says so, and refuses nothing for it."""

from __future__ import annotations

import httpx

from services.dataset import app
from services.dataset.settings import Settings
from services.gateway.app import build as build_gateway
from services.gateway.settings import GatewaySettings
from services.mesh.settings import Environment
from tests.fix_member import until
from tests.integration.dataset.conftest import calling


async def test_readiness_names_the_service_whose_disk_is_nearly_full(own: dict[str, str]) -> None:
    server = app.build(Settings.from_env({**own, "RLHF_DISK_LOW_BYTES": str(1 << 59)}))
    await server.start()
    target = f"127.0.0.1:{server.port}"
    gateway = build_gateway(
        GatewaySettings.read(Environment({"RLHF_HOME": own["RLHF_HOME"], "RLHF_DATASET_TARGET": target}))
    )
    await gateway.start()
    try:
        async with httpx.AsyncClient(trust_env=False) as http, calling(target, own) as caller:

            async def is_degraded() -> bool:
                answer = await http.get(f"http://127.0.0.1:{gateway.http_port}/readyz")
                return answer.status_code == 200 and "the disk of dataset is nearly full" in answer.text

            await until(is_degraded)
            assert (await caller.dataset()).name
    finally:
        await gateway.stop()
        await server.stop()
