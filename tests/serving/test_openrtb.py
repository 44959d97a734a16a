"""OpenRTB 2.6: the specification's example requests, and the rules one by one.

The files in `openrtb/` are the example bid requests of the IAB Tech Lab's specification.
"""

import copy
import json
from pathlib import Path

import pytest

from adrec.errors import ConfigError

EXAMPLES = {
    path.stem: json.loads(path.read_text())
    for path in (Path(__file__).parent / "openrtb").glob("*.json")
}
OPENRTB = {
    "seat": "Agency1",
    "domain": "advertiser_id",
    "category": "category",
    "campaign": "campaign_id",
    "formats": ["banner", "video"],
    "markup": {
        "banner": "<a href='${ADREC_URL}/c/${ADREC_REQUEST_ID}/${ADREC_AD_ID}'>${AUCTION_ID}</a>"
    },
    "url": "https://ads.example.com/",
    "context": {"device": {"path": "device.devicetype", "values": {"1": "mobile"}}},
}  # fmt: skip


@pytest.fixture
def server(serve):
    return serve(openrtb=OPENRTB)


def example(name="simple-banner", **changes):
    return copy.deepcopy(EXAMPLES[name]) | changes


def post(server, request):
    return server.http.post("/openrtb2/bid", json=request)


def bids(server, request):
    found = post(server, request)
    assert found.status_code == 200, found.text
    content = found.json()
    (seat,) = content["seatbid"]
    assert (content["id"], content["cur"], seat["seat"]) == (request["id"], "USD", "Agency1")
    return seat["bid"]


class TestExamples:
    def test_simple_banner(self, server):
        (bid,) = bids(server, example())
        ad = server.http.get(f"/v1/ads/{bid['adid']}").json()
        assert (bid["impid"], bid["mtype"], bid["crid"]) == ("1", 1, bid["adid"])
        assert bid["adomain"] == [ad["fields"]["advertiser_id"]]
        assert bid["cat"] == [ad["fields"]["category"]]
        assert bid["cid"] == ad["fields"]["campaign_id"]
        best = server.recommend(user=example()["user"]["id"], k=1)["ads"][0]
        assert bid["adid"] == best["ad_id"]
        assert bid["price"] == pytest.approx(best["value_micros"] / 1000.0, abs=0.001)
        assert bid["price"] >= 0.03

    def test_mobile_app(self, server):
        (bid,) = bids(server, example("mobile-app"))
        assert bid["price"] >= 0.5

    def test_video(self, server):
        (bid,) = bids(server, example("video", tmax=30_000))
        assert bid["mtype"] == 2
        assert "adm" not in bid  # no markup of videos was given

    def test_a_private_deal_that_is_not_ours(self, server):
        assert post(server, example("pmp-direct-deal")).status_code == 204

    def test_a_private_deal_of_ours(self, serve):
        server = serve(openrtb=OPENRTB | {"deals": ["AB-Agency1-0001", "XY-Agency2-0001"]})
        ad = server.http.get("/v1/ads?limit=1").json()["ads"][0]
        dear = {"ad_id": "dear", "bid_micros": 10**12, **ad["fields"]}
        assert server.http.put("/v1/ads", json={"ads": [dear]}).status_code == 204
        (bid,) = bids(server, example("pmp-direct-deal"))
        assert bid["dealid"] == "AB-Agency1-0001"  # the other is for another seat
        assert bid["price"] >= 2.5


class TestTerms:
    def test_floor(self, server):
        request = example()
        request["imp"][0]["bidfloor"] = 1e9
        found = post(server, request)
        assert (found.status_code, found.content) == (204, b"")
        assert found.headers["x-openrtb-version"] == "2.6"

    def test_a_floor_in_another_currency(self, server):
        request = example()
        request["imp"][0]["bidfloorcur"] = "JPY"
        assert post(server, request).status_code == 204

    def test_currency(self, server):
        assert post(server, example(cur=["EUR"])).status_code == 204
        assert bids(server, example(cur=["EUR", "USD"]))

    def test_seats(self, server):
        assert post(server, example(wseat=["other"])).status_code == 204
        assert post(server, example(bseat=["Agency1"])).status_code == 204
        assert bids(server, example(wseat=["other", "Agency1"]))

    def test_blocked_advertisers_and_categories(self, server):
        blocked = {"badv": [], "bcat": []}
        for _ in range(4):
            (bid,) = bids(server, example(**blocked))
            assert bid["adomain"][0] not in blocked["badv"]
            assert bid["cat"][0] not in blocked["bcat"]
            blocked["badv"] += bid["adomain"]
            blocked["bcat"] += bid["cat"]

    def test_allowed_categories(self, server):
        (bid,) = bids(server, example())
        (other,) = bids(server, example(bcat=bid["cat"]))
        (found,) = bids(server, example(acat=other["cat"]))
        assert found["adid"] == other["adid"]

    def test_several_impressions_get_different_ads(self, server):
        request = example()
        request["imp"] = [request["imp"][0] | {"id": str(i), "bidfloor": 0.0} for i in range(4)]
        found = bids(server, request)
        assert [bid["impid"] for bid in found] == ["0", "1", "2", "3"]
        assert len({bid["adid"] for bid in found}) == 4

    def test_sizes(self, serve):
        server = serve(openrtb=OPENRTB | {"size": "format"})
        ad = server.http.get("/v1/ads?limit=1").json()["ads"][0]["fields"]
        sized = [
            {"ad_id": size, "bid_micros": 10**9, **ad, "format": size}
            for size in ("300x250", "728x90")
        ]
        assert server.http.put("/v1/ads", json={"ads": sized}).status_code == 204
        assert [bid["adid"] for bid in bids(server, example())] == ["300x250"]
        assert [bid["adid"] for bid in bids(server, example("mobile-app"))] == ["728x90"]
        request = example()
        request["imp"][0]["banner"] = {"format": [{"w": 1, "h": 1}, {"w": 728, "h": 90}]}
        assert [bid["adid"] for bid in bids(server, request)] == ["728x90"]
        request["imp"][0]["banner"] = {"format": [{"w": 1, "h": 1}]}
        assert post(server, request).status_code == 204

    def test_a_format_that_is_not_bid_on(self, serve):
        server = serve(openrtb=OPENRTB | {"formats": ["banner"]})
        assert post(server, example("video", tmax=30_000)).status_code == 204

    def test_no_time(self, server):
        assert post(server, example(tmax=1)).status_code == 204


class TestPrivacy:
    @pytest.mark.parametrize(
        "part",
        [
            {"device": {"lmt": 1}},
            {"device": {"dnt": 1}},
            {"regs": {"coppa": 1}},
            {"regs": {"gdpr": 1}},
        ],
        ids=str,
    )
    def test_who_does_not_want_to_be_known_is_nobody(self, server, part):
        request = example(user={"id": "17"}, **part)
        (bid,) = bids(server, request)
        nobody = server.recommend(user=None, k=1)["ads"][0]
        assert bid["price"] == pytest.approx(nobody["value_micros"] / 1000.0, abs=0.001)

    def test_with_consent_the_user_is_known(self, server):
        known = bids(server, example(user={"id": "17"}))[0]["price"]
        asked = example(user={"id": "17", "consent": "CP..."}, regs={"gdpr": 1})
        assert bids(server, asked)[0]["price"] == known


class TestNotices:
    def test_billing_is_an_impression_and_counts_once(self, server):
        (bid,) = bids(server, example(user={"id": "new here"}))
        assert bid["nurl"].startswith("https://ads.example.com/openrtb2/win?request=")
        assert "price=${AUCTION_PRICE}&currency=${AUCTION_CURRENCY}" in bid["burl"]
        burl = bid["burl"].replace("${AUCTION_PRICE}", "1.23").replace("${AUCTION_CURRENCY}", "USD")
        for notice in (burl, burl, bid["nurl"]):  # the last with its macros as they are
            path = notice.removeprefix("https://ads.example.com")
            assert server.http.get(path).status_code == 204
        assert server.http.get("/v1/users/new here").json()["known"]
        page = server.http.get("/metrics").text
        for result in ("made", "won", "billed"):
            assert f'adrec_bids_total{{result="{result}"}} 1.0' in page

    def test_billing_of_what_was_never_bid(self, server):
        found = server.http.get("/openrtb2/billing?request=unknown&ad=1")
        assert (found.status_code, "no answer has" in found.text) == (422, True)

    def test_markup(self, server):
        (bid,) = bids(server, example())
        request_id = bid["burl"].partition("request=")[2].partition("&")[0]
        link = f"https://ads.example.com/c/{request_id}/{bid['adid']}"
        assert bid["adm"] == f"<a href='{link}'>${{AUCTION_ID}}</a>"


class TestMistakes:
    @pytest.mark.parametrize(
        "request_",
        [{}, {"id": "1"}, {"id": "1", "imp": []}, example(imp=[{"id": "1", "bidfloor": -1}]), []],
        ids=str,
    )
    def test_what_is_no_bid_request(self, server, request_):
        assert post(server, request_).status_code == 400

    def test_a_field_that_the_schema_has_not(self, serve):
        with pytest.raises(ConfigError, match="no ad field is called domain"):
            serve(openrtb={"domain": "domain"})
        with pytest.raises(ConfigError, match="no request field is called country"):
            serve(openrtb={"context": {"country": {"path": "device.geo.country"}}})
