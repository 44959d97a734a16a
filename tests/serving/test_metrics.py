"""What is counted, where more than one place could count it."""

import pytest

from serving.test_openrtb import OPENRTB, example


def total(server, name):
    return server.app.state.metrics.totals().get(f"adrec_{name}")


@pytest.mark.parametrize("many", [1, 3])
def test_each_request_of_a_batch_that_is_refused(server, many):
    server.service.batcher.close()
    body = {"requests": [{"user": "17"}] * many}
    answers = server.http.post("/v1/recommend", json=body).json()["answers"]
    assert all("about to stop" in one["detail"] for one in answers)
    assert total(server, "refused_total") == many
    assert server.http.post("/v1/recommend", json={"user": "17"}).status_code == 429
    assert total(server, "refused_total") == many + 1


def test_each_impression_of_an_exchange_that_is_refused(serve):
    server = serve(openrtb=OPENRTB)
    server.service.batcher.close()
    request = example()
    request["imp"] = [request["imp"][0] | {"id": str(number)} for number in range(3)]
    assert server.http.post("/openrtb2/bid", json=request).status_code == 204
    assert total(server, "refused_total") == 3
    assert total(server, "bids_total{result=none}") == 1


def test_what_was_asked_wrong_is_not_refused(server):
    bodies = [{"k": 101}, {"context": {"nonsense": 1}}]
    for body in (*bodies, {"requests": bodies}):
        server.http.post("/v1/recommend", json=body)
    assert total(server, "refused_total") == 0


def test_of_skew_nothing_is_said_before_it_was_looked_for(serve):
    server = serve(sample=1.0)
    assert "skew" not in server.http.get("/metrics").text
    assert total(server, "skew_compared") is None
    for _ in range(2):
        assert server.admin.post("/admin/check").json()["checked"] == 0
        assert "adrec_skew_compared 0.0" in server.http.get("/metrics").text
        assert (total(server, "skew_compared"), total(server, "skew_different")) == (0, 0)
