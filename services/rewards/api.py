"""A judge behind an address: a language model with a rubric, or an endpoint of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, Field

from services.mesh.errors import NotFound, Violation
from services.mesh.identity import read_secret
from services.mesh.outbound import Allowance, Endpoint
from services.mesh.validation.params import STRICT_FIELDS
from services.mesh.validation.partial import collect_violations
from services.rewards import Judge, Reward, RewardContext, RewardError, RewardSample, Score, rewards
from services.rewards.spec import RewardSite
from services.scoring import regex

if TYPE_CHECKING:
    from services.rewards.judges.cost_ledger import Spent
    from services.rewards.judges.http_client import CallSettings
    from services.rewards.judges.llm_judge import Rubric

_CHAT_PARTS = frozenset({"judged", "input_tokens", "output_tokens", "cost"})
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def _address(url: str) -> str:
    Endpoint.of(url)
    return url


def _has_score(pattern: str) -> str:
    if pattern and "score" not in regex.compile_pattern(pattern, False).groupindex:
        raise ValueError("must have a group (?P<score>…)")
    return pattern


@dataclass(frozen=True)
class ApiParams:
    url: Annotated[
        str,
        AfterValidator(_address),
        Field(
            max_length=2000, description="http(s) address that is posted to, such as https://host/v1/chat/completions"
        ),
    ]
    protocol: Annotated[
        Literal["chat", "scores"],
        Field(description="chat: an OpenAI-compatible model judges by the rubric; scores: an endpoint gives scores"),
    ] = "chat"
    # Without a bound: an error would quote the secret that somebody has put here.
    key: Annotated[str, Field(description="secret:<name>, sent as a bearer token; or empty")] = ""
    model: Annotated[str, Field(max_length=200, description="of chat: the judge's name at its server")] = ""
    rubric: Annotated[str, Field(max_length=20_000, description="of chat: what is worth how much")] = ""
    scale_min: Annotated[float, Field(ge=-1e6, le=1e6, description="of chat: the worst score, which becomes 0")] = 0.0
    scale_max: Annotated[float, Field(ge=-1e6, le=1e6, description="of chat: the best score, which becomes 1")] = 10.0
    reply: Annotated[
        Literal["json", "regex"],
        Field(description='of chat: {"score": …} and nothing else, or what a pattern finds once'),
    ] = "json"
    pattern: Annotated[
        str,
        AfterValidator(_has_score),
        Field(max_length=regex.LONGEST_PATTERN, description="RE2 with (?P<score>…), for regex"),
    ] = ""
    reply_text: Annotated[str, Field(max_length=2000, description="what the judge is told of that form, for regex")] = (
        ""
    )
    json_mode: Annotated[bool, Field(description="of chat: ask the server for JSON (response_format)")] = True
    show_answer: Annotated[bool, Field(description="of chat: the judge sees the row's answer where there is one")] = (
        True
    )
    max_tokens: Annotated[int, Field(ge=1, le=65_536, description="of chat: the judge's own")] = 512
    temperature: Annotated[float, Field(ge=0, le=2, description="of chat: the judge's own")] = 0.0
    batch_size: Annotated[int, Field(ge=1, le=4096, description="of scores: samples a request")] = 64
    concurrency: Annotated[int, Field(ge=1, le=256, description="requests at a time")] = 8
    requests_per_minute: Annotated[float | None, Field(gt=0, le=1e6, description="null sets no pace")] = None
    timeout_seconds: Annotated[float, Field(gt=0, le=3600, description="of one request")] = 60.0
    retries: Annotated[
        int, Field(ge=0, le=20, description="before the job says that it waits, and of replies that can't be used")
    ] = 3
    input_price: Annotated[float, Field(ge=0, le=1e6, description="of chat: for a million tokens")] = 0.0
    output_price: Annotated[float, Field(ge=0, le=1e6, description="of chat: for a million tokens")] = 0.0
    cost_cap: Annotated[
        float | None, Field(gt=0, description="a job whose judge might cost more fails; in the prices' currency")
    ] = None
    __pydantic_config__ = STRICT_FIELDS

    def rules(self) -> list[Violation]:
        return collect_violations(
            lambda: self._check_set("model", self.protocol == "chat", self.model, "chat wants one"),
            lambda: self._check_set("rubric", self.protocol == "chat", self.rubric, "chat wants one"),
            lambda: self._check_set("pattern", self.reply == "regex", self.pattern, "regex wants one"),
            lambda: self._check_set("reply_text", self.reply == "regex", self.reply_text, "regex wants one"),
            self._check_scale,
            self._check_prices,
        )

    @staticmethod
    def _check_set(name: str, wanted: bool, value: str, message: str) -> list[Violation]:
        return [Violation(name, f"must be set: {message}")] if wanted and not value else []

    def _check_scale(self) -> list[Violation]:
        if self.scale_min < self.scale_max:
            return []
        return [Violation("scale_min", f"must be less than scale_max ({self.scale_max:g})")]

    def _check_prices(self) -> list[Violation]:
        if self.cost_cap is None or self.protocol != "chat" or self.input_price or self.output_price:
            return []
        return [Violation("cost_cap", "wants prices: set input_price or output_price")]


@rewards.register("api")
class Api(Reward):
    """A judge over HTTP: a language model with a rubric (any OpenAI-compatible server), or an endpoint of your own.

    chat: score = (s − scale_min) / (scale_max − scale_min), s the judge's. Parts: `judged`, s; `input_tokens`,
    `output_tokens`, `cost` of the sample. LLM-as-a-judge as in Zheng et al. 2023 (arXiv:2306.05685). scores: POST
    {"samples": [{"prompt", "completion", "answer", "metadata"}]} → {"scores": [{"score", "parts"}], "cost"}, as they
    are.

    The completion is given to the judge as material between random marks, and only the judge's own reply, in one strict
    form, is read. While the judge is away the job waits and says so; a reply that can't be used is asked for again and
    then fails the job: nothing is ever scored by default. A judge has tastes (length, confidence, its own words), and a
    policy finds them: keep a `held_out_reward` that it is not trained on.
    """

    Params = ApiParams

    @staticmethod
    def check(params: ApiParams, site: RewardSite, field: str, depth: int) -> list[Violation]:
        return collect_violations(
            lambda: _check_address(params, site, field),
            lambda: _check_way(params, field),
            lambda: _check_key(params, site, field),
        )

    @staticmethod
    def parts(params: ApiParams) -> frozenset[str] | None:
        return _CHAT_PARTS if params.protocol == "chat" else None

    @staticmethod
    def open(params: ApiParams, surroundings: RewardContext) -> Judge:
        key = ""
        if params.key:
            try:
                key = read_secret(Path(surroundings.site.secrets_folder), params.key)
            except (NotFound, ValueError) as error:
                raise RewardError(str(error), reason="SECRET_NOT_FOUND") from None
        return (
            _ChatJudge(params, key, surroundings) if params.protocol == "chat" else _Scores(params, key, surroundings)
        )


def _check_address(params: ApiParams, site: RewardSite, field: str) -> list[Violation]:
    endpoint = Endpoint.of(params.url)
    if Allowance(site.outbound_allow).may_allow(endpoint):
        return []
    allowed = ", ".join(site.outbound_allow) or "none"
    message = f"{endpoint.host}:{endpoint.port} may not be called: RLHF_OUTBOUND_ALLOW of the trainer is {allowed}"
    return [Violation(f"{field}.url", message)]


def _check_way(params: ApiParams, field: str) -> list[Violation]:
    endpoint = Endpoint.of(params.url)
    if not params.key or endpoint.scheme != "http" or endpoint.host in _LOOPBACK_NAMES:
        return []
    return [Violation(f"{field}.key", "is sent over https:// only, except to this machine")]


def _check_key(params: ApiParams, site: RewardSite, field: str) -> list[Violation]:
    try:
        # Here and not by pydantic, which would quote what is wrong.
        if params.key:
            read_secret(Path(site.secrets_folder), params.key)
    except (NotFound, ValueError) as error:
        return [Violation(f"{field}.key", str(error))]
    return []


def _calls(params: ApiParams, key: str) -> CallSettings:
    from services.rewards.judges.http_client import CallSettings

    return CallSettings(
        params.url, key, params.retries, params.timeout_seconds, params.concurrency, params.requests_per_minute
    )


def _rubric(params: ApiParams) -> Rubric:
    from services.rewards.judges.llm_judge import Rubric

    return Rubric(
        model=params.model,
        text=params.rubric,
        low=params.scale_min,
        high=params.scale_max,
        form=params.reply,
        pattern=params.pattern,
        form_text=params.reply_text,
        json_mode=params.json_mode,
        show_answer=params.show_answer,
        max_tokens=params.max_tokens,
        temperature=params.temperature,
    )


class _ChatJudge:
    def __init__(self, params: ApiParams, key: str, surroundings: RewardContext) -> None:
        from services.rewards.judges.cost_ledger import CostLedger
        from services.rewards.judges.http_client import Caller

        self._params = params
        self._rubric = _rubric(params)
        self._ledger = CostLedger(surroundings.site.ledger, params.cost_cap)
        self._caller = Caller(_calls(params, key), surroundings)

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        return self._caller.map(self._one, samples)

    def _one(self, index: int, sample: RewardSample) -> Score:
        from services.rewards.judges import llm_judge
        from services.rewards.judges.cost_ledger import Bill, Spent

        body = llm_judge.request(self._rubric, sample)
        most = llm_judge.most(body, self._params.max_tokens)
        spent = Spent()

        def count(reply: Any) -> Spent:
            nonlocal spent
            found = self._priced(llm_judge.usage(reply) or most)
            spent += found
            return found

        bill = Bill(self._ledger, self._priced(most), count)
        judged = self._caller.post(body, lambda reply: llm_judge.score(self._rubric, reply), index, bill)
        share = (judged - self._rubric.low) / (self._rubric.high - self._rubric.low)
        tokens = {"input_tokens": float(spent.input_tokens), "output_tokens": float(spent.output_tokens)}
        return Score(share, {"judged": judged, **tokens, "cost": spent.cost})

    def _priced(self, tokens: tuple[int, int]) -> Spent:
        from services.rewards.judges import llm_judge

        return llm_judge.priced(tokens, self._params.input_price, self._params.output_price)

    def close(self) -> None:
        self._caller.close()


class _Scores:
    def __init__(self, params: ApiParams, key: str, surroundings: RewardContext) -> None:
        from services.rewards.judges.cost_ledger import CostLedger
        from services.rewards.judges.http_client import Caller

        self._params = params
        self._ledger = CostLedger(surroundings.site.ledger, params.cost_cap)
        self._caller = Caller(_calls(params, key), surroundings)

    def score(self, samples: Sequence[RewardSample]) -> list[Score]:
        size = self._params.batch_size
        batches = [samples[at : at + size] for at in range(0, len(samples), size)]
        return [score for scores in self._caller.map(self._batch, batches) for score in scores]

    def _batch(self, index: int, samples: Sequence[RewardSample]) -> list[Score]:
        from services.rewards.judges import score_endpoint as scores
        from services.rewards.judges.cost_ledger import Bill, Spent

        first = index * self._params.batch_size
        body = scores.request(samples)
        bill = Bill(self._ledger, Spent(), scores.cost)
        return self._caller.post(body, lambda reply: scores.read(reply, len(samples), first), None, bill)

    def close(self) -> None:
        self._caller.close()
