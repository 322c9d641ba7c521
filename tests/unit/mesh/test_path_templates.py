"""Path templates: the grammar, matching, decoding, and which of several templates wins."""

import contextlib
import itertools
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.transcoding.path_templates import NoRoute, PathTemplate, Router


def find(template: str, path: str) -> dict[str, str] | None:
    router: Router[str] = Router()
    router.add("GET", PathTemplate.parse(template), template)
    try:
        return router.find("GET", path).capture()
    except NoRoute as error:
        assert not error.allowed
        return None


@pytest.mark.parametrize(
    ("template", "path", "captured"),
    [
        ("/v1/messages/{message_id}", "/v1/messages/123456", {"message_id": "123456"}),
        ("/v1/{name=messages/*}", "/v1/messages/123456", {"name": "messages/123456"}),
        (
            "/v1/users/{user_id}/messages/{message_id}",
            "/v1/users/me/messages/123456",
            {"user_id": "me", "message_id": "123456"},
        ),
        ("/v1/messages/{message_id}/{sub.subfield}", "/v1/messages/1/x", {"message_id": "1", "sub.subfield": "x"}),
        ("/v1/{name=a/*/b/*}", "/v1/a/1/b/2", {"name": "a/1/b/2"}),
        ("/v1/{name=a/*/b/*}", "/v1/a/1/c/2", None),
        ("/v1/{name=a/*}/b", "/v1/a/1/b", {"name": "a/1"}),
        ("/v1/{name=a/*}", "/v1/a/1/2", None),
        ("/v1/{name=a/*}", "/v1/a/", None),
        ("/v1/{name=a/*}", "/v1/a", None),
        ("/v1/a", "/v1/a", {}),
        ("/v1/a", "/v1/a/", None),
        ("/v1/a", "/v2/a", None),
        ("/v1/{name=**}", "/v1/a/b/c", {"name": "a/b/c"}),
        ("/v1/{name=**}", "/v1/", {"name": ""}),
        ("/v1/{name=**}", "/v1", {"name": ""}),
        ("/v1/files/{name=x/**}", "/v1/files/x/y/z", {"name": "x/y/z"}),
        ("/v1/files/{name=x/**}", "/v1/files/y", None),
        ("/v1/**", "/v1/a/b", {}),
        ("/v1/*/b", "/v1/a/b", {}),
        ("/v1/{name=a/*}:cancel", "/v1/a/1:cancel", {"name": "a/1"}),
        ("/v1/{name=a/*}:cancel", "/v1/a/1", None),
        ("/v1/{name=a/*}:cancel", "/v1/a/1:stop", None),
        ("/v1/{name=a/*}:cancel", "/v1/a/1:", None),
        ("/v1/{name=a/*}:cancel", "/v1/a/1:2:cancel", {"name": "a/1:2"}),
        ("/v1/{name=**}:undo", "/v1/a/b:undo", {"name": "a/b"}),
        ("/v1/{name=a/*}", "/v1/a/1:cancel", None),
        ("/v1/{name=a/*}", "/v1/a/1%3Acancel", {"name": "a/1:cancel"}),
        ("/v1/{parent=a/*}/models:import", "/v1/a/1/models:import", {"parent": "a/1"}),
        ("/v1/a:b", "/v1/a:b", {}),
        ("/", "/", {}),
        ("/", "//", None),
        ("/", "/a", None),
        ("/", "", None),
        # One segment: everything is decoded, %2F too.
        ("/v1/{name}", "/v1/a%2Fb%20c", {"name": "a/b c"}),
        ("/v1/{name=*}", "/v1/a%2fb", {"name": "a/b"}),
        # More than one: %2F stays, in the case it was sent.
        ("/v1/{name=a/*}", "/v1/a/x%2Fy%20z", {"name": "a/x%2Fy z"}),
        ("/v1/{name=**}", "/v1/x%2fy/%C3%A9", {"name": "x%2fy/é"}),
        # A literal is compared decoded.
        ("/v1/{name=a/*}", "/v1/%61/1", {"name": "a/1"}),
        ("/v1/caf%C3%A9/{x}", "/v1/caf%c3%a9/1", {"x": "1"}),
        ("/v1/{name=a/*}", "/v1/a/+", {"name": "a/+"}),
        ("/v1/{name}", "/v1//", None),
        ("/v1/{name}", "v1/a", None),
        ("/v1/{name}", "", None),
    ],
)
def test_path_fits_template(template: str, path: str, captured: dict[str, str] | None) -> None:
    assert find(template, path) == captured


@pytest.mark.parametrize(
    "text",
    [
        *("", "v1/a", "/v1//a", "/v1/a/", "/v1/a*", "/v1/**/a"),
        *("/v1/{}", "/v1/{a", "/v1/a}", "/v1/{a=}", "/v1/{a.}", "/v1/{1a}"),
        *("/v1/{a=**}/b", "/v1/{a}/{a}", "/v1/{a=b/{c}}"),
    ],
)
def test_bad_template_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        PathTemplate.parse(text)


@pytest.mark.parametrize("path", ["/v1/%zz", "/v1/%4", "/v1/%ff"])
def test_broken_escape_in_a_variable_is_an_error(path: str) -> None:
    with pytest.raises(ValueError):
        find("/v1/{name}", path)


def test_literal_goes_before_star_and_star_before_rest_in_any_order_of_adding() -> None:
    templates = ["/v1/a/b", "/v1/a/*", "/v1/*/b", "/v1/a/**", "/v1/**"]
    expected = {"/v1/a/b": 0, "/v1/a/x": 1, "/v1/x/b": 2, "/v1/a/x/y": 3, "/v1/x/y": 4}
    for order in itertools.permutations(range(len(templates))):
        router: Router[int] = Router()
        for index in order:
            router.add("GET", PathTemplate.parse(templates[index]), index)
        assert {path: router.find("GET", path).value for path in expected} == expected


def test_backtracks_when_the_literal_leads_nowhere() -> None:
    router: Router[str] = Router()
    router.add("GET", PathTemplate.parse("/v1/a/b/c"), "literal")
    router.add("GET", PathTemplate.parse("/v1/{x}/b/d"), "variable")
    assert router.find("GET", "/v1/a/b/d").capture() == {"x": "a"}


def test_other_method_tells_what_is_allowed_and_a_less_special_template_may_answer() -> None:
    router: Router[str] = Router()
    router.add("GET", PathTemplate.parse("/v1/a/b"), "get")
    router.add("DELETE", PathTemplate.parse("/v1/a/{x}"), "delete")
    assert router.find("DELETE", "/v1/a/b").value == "delete"
    with pytest.raises(NoRoute) as refused:
        router.find("POST", "/v1/a/b")
    assert refused.value.allowed == {"GET", "DELETE"}
    with pytest.raises(NoRoute) as unknown:
        router.find("GET", "/v1/b")
    assert not unknown.value.allowed


def test_star_method_takes_every_method_but_a_named_one_goes_first() -> None:
    router: Router[str] = Router()
    router.add("*", PathTemplate.parse("/v1/a"), "any")
    router.add("PUT", PathTemplate.parse("/v1/a"), "put")
    assert [router.find(method, "/v1/a").value for method in ("GET", "PUT", "BREW")] == ["any", "put", "any"]


def test_two_templates_for_one_place_are_refused() -> None:
    router: Router[str] = Router()
    router.add("GET", PathTemplate.parse("/v1/{name=a/*}"), "first")
    with pytest.raises(ValueError, match="a/\\*"):
        router.add("GET", PathTemplate.parse("/v1/a/{id}"), "second")


@given(st.text(min_size=1))
def test_single_segment_takes_back_any_text_that_was_percent_encoded(text: str) -> None:
    try:
        encoded = quote(text, safe="-_.~")
    except UnicodeEncodeError:
        return
    assert find("/v1/{name}/end", f"/v1/{encoded}/end") == {"name": text}


@given(st.text())
def test_no_path_breaks_the_router(path: str) -> None:
    router: Router[str] = Router()
    for template in ("/v1/{name=a/*}:go", "/v1/{name=**}", "/{x}/y"):
        router.add("GET", PathTemplate.parse(template), template)
    with contextlib.suppress(NoRoute):
        router.find("GET", "/" + path)
