"""OpenRTB 2.6: the specification's example requests, and the rules one by one.

The files in `openrtb/` are the example bid requests of the IAB Tech Lab's specification.
"""

import copy
import json
import random
from pathlib import Path
from urllib.parse import quote

import pytest

from adrec.errors import ConfigError
from adrec.serving.openrtb import BidRequest, OpenRtbConfig, lots_of

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

PLACES = {
    "device": {"path": "device.devicetype", "values": {"1": "mobile"}},
    "place": {"path": "site.domain"},
}
ALL = OPENRTB | {"size": "format", "context": PLACES}


@pytest.fixture
def server(serve):
    return serve(openrtb=OPENRTB)


def example(name="simple-banner", **changes):
    return copy.deepcopy(EXAMPLES[name]) | changes


def post_text(server, text):
    headers = {"content-type": "application/json"}
    return server.http.post("/openrtb2/bid", content=text, headers=headers)


def post(server, request):
    return post_text(server, json.dumps(request))  # httpx would refuse NaN


def bids(server, request):
    found = post(server, request)
    assert found.status_code == 200, found.text
    content = found.json()
    (seat,) = content["seatbid"]
    assert (content["id"], content["cur"], seat["seat"]) == (request["id"], "USD", "Agency1")
    return seat["bid"]


def dear(server, ad_id, **fields):
    """Add an ad that wins."""
    ad = server.http.get("/v1/ads?limit=1").json()["ads"][0]["fields"]
    put = {"ad_id": ad_id, "bid_micros": 10**12, **ad, **fields}
    assert server.http.put("/v1/ads", json={"ads": [put]}).status_code == 204


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
        dear(server, "dear")
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
            {"device": {"lmt": "1"}},
            {"regs": {"ext": {"gdpr": 1}}},  # as in OpenRTB 2.5
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
        early = {"id": "17", "ext": {"consent": "CP..."}}
        assert bids(server, example(user=early, regs={"gdpr": 1}))[0]["price"] == known


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

    def test_with_a_token_only_a_bid_can_be_billed(self, serve):
        """Whoever asks for ads knows the ids of the answer, but not the code."""
        server = serve(openrtb=OPENRTB, events_token="token-of-a-test-0123")
        (bid,) = bids(server, example())
        answer = server.recommend(user="17", k=1)
        asked = f"request={answer['request_id']}&ad={answer['ads'][0]['ad_id']}"
        code = bid["burl"].partition("&code=")[2]
        for kind in ("win", "billing"):
            for query in (asked, f"{asked}&code={code}", f"{asked}&code=é"):
                assert server.http.get(f"/openrtb2/{kind}?{query}").status_code == 403
            path = bid["burl"].removeprefix("https://ads.example.com")
            assert server.http.get(path.replace("billing", kind)).status_code == 204
        assert 'adrec_bids_total{result="billed"} 1.0' in server.http.get("/metrics").text

    def test_billing_of_what_was_never_bid(self, server):
        found = server.http.get("/openrtb2/billing?request=unknown&ad=1")
        assert (found.status_code, "no answer has" in found.text) == (422, True)

    def test_markup(self, server):
        (bid,) = bids(server, example())
        request_id = bid["burl"].partition("request=")[2].partition("&")[0]
        link = f"https://ads.example.com/c/{request_id}/{bid['adid']}"
        assert bid["adm"] == f"<a href='{link}'>${{AUCTION_ID}}</a>"

    def test_an_id_that_would_break_out_of_the_markup(self, server):
        odd = "'\"><script>${AUCTION_PRICE}</script>&price=9/é"
        dear(server, odd, category="dear")
        (bid,) = bids(server, example(acat=["dear"]))
        safe = quote(odd, safe="")
        assert not set("'\"<>${}&/") & set(safe)
        request_id = bid["burl"].partition("request=")[2].partition("&")[0]
        link = f"https://ads.example.com/c/{request_id}/{safe}"
        assert (bid["adid"], bid["adm"]) == (odd, f"<a href='{link}'>${{AUCTION_ID}}</a>")
        for url in (bid["nurl"], bid["burl"]):
            assert url.split("&")[1:3] == [f"ad={safe}", "price=${AUCTION_PRICE}"]
        path = bid["burl"].removeprefix("https://ads.example.com")
        assert server.http.get(path).status_code == 204

    def test_an_id_as_long_as_may_be(self, server):
        dear(server, "x" * 512, category="dear")
        (bid,) = bids(server, example(acat=["dear"]))
        assert bid["adid"] == "x" * 512
        path = bid["burl"].removeprefix("https://ads.example.com")
        assert [server.http.get(path).status_code for _ in range(2)] == [204, 204]
        assert 'adrec_bids_total{result="billed"} 1.0' in server.http.get("/metrics").text

    @pytest.mark.parametrize(
        ("request_id", "ad_id", "status"),
        [("x" * 512, "y" * 512, 422), ("%00", "1", 400), ("1", "%00", 400), ("", "1", 400)],
        ids=["long", "nul", "nul ad", "empty"],
    )
    def test_a_notice_of_what_cannot_be(self, server, request_id, ad_id, status):
        found = server.http.get(f"/openrtb2/billing?request={request_id}&ad={ad_id}")
        assert found.status_code == status


class TestMistakes:
    @pytest.mark.parametrize(
        "request_",
        [{}, {"id": "1"}, {"id": "1", "imp": []}, example(imp=[{"id": "1", "bidfloor": -1}]), []],
        ids=str,
    )
    def test_what_is_no_bid_request(self, server, request_):
        assert post(server, request_).status_code == 400

    def test_more_impressions_than_ads_that_may_be_asked_for(self, serve):
        server = serve(openrtb=OPENRTB, limits={"k": 2})
        imps = [{"id": str(i), "banner": {"w": 300, "h": 250}} for i in range(3)]
        assert bids(server, example(imp=imps))

    def test_a_field_that_the_schema_has_not(self, serve):
        config = {"domain": "domain", "context": {"country": {"path": "device.geo.country"}}}
        with pytest.raises(ConfigError, match="no ad field is called domain") as caught:
            serve(openrtb=config)
        assert "no request field is called country" in str(caught.value)


def request_read(request, **config):
    """What is asked for the first impression of a request."""
    read = OpenRtbConfig.model_validate(ALL | config)
    (lot, *_) = lots_of(BidRequest.model_validate(request), read, "USD", 200.0, 10)
    return lot.asked


NO_VALUES = (
    None, "x" * 600, "a\0b", "\ud800", float("nan"), float("inf"), 10**600,
    -(10**4299), [], ["a"], [[]], {}, {"domain": "a"},
)  # fmt: skip
VALUES = ("", "a", "\u202e", True, 0, -1, 2.5, 1e308, 2**60)


def short(value):
    return repr(value)[:20]


class TestValuesThatDoNotFit:
    @pytest.mark.parametrize("value", [*NO_VALUES, "0" * 600 + "5"], ids=short)
    def test_a_value_of_the_context_is_missing(self, value):
        config = {"context": {"place": {"path": "site.domain"}, "device": {"path": "imp.tagid"}}}
        request = example(site={"domain": value})
        request["imp"][0]["tagid"] = "mobile"
        assert request_read(request, **config).context == {"device": "mobile"}
        request["imp"][0]["tagid"] = value
        assert request_read(request, **config).context == {}

    @pytest.mark.parametrize("value", VALUES, ids=short)
    def test_a_value_of_the_context_is_there(self, value):
        assert request_read(example(site={"domain": value})).context == {"place": value}

    def test_what_is_called_otherwise_in_the_schema_may_be_long(self):
        place = {"path": "site.domain", "values": {"x" * 600: "long"}}
        request = example(site={"domain": "x" * 600})
        assert request_read(request, context={"place": place}).context == {"place": "long"}

    @pytest.mark.parametrize("site", [None, 1, "domain", [], [{"domain": "a"}], True], ids=short)
    def test_a_path_through_something_else(self, site):
        assert request_read(example(site=site)).context == {}

    @pytest.mark.parametrize("value", [*NO_VALUES, -1, 100_001, 2.5, "wide", "", 0], ids=short)
    def test_what_is_no_size(self, value):
        request = example()
        request["imp"][0]["banner"] = {
            "w": 300, "h": value, "format": [{"w": value, "h": 250}, {"w": 728, "h": 90}],
        }  # fmt: skip
        assert request_read(request).only == {"format": ["728x90"]}
        request["imp"][0]["banner"] = {"w": value, "h": value}
        assert request_read(request).only == {}

    @pytest.mark.parametrize("user", ["x" * 513, "a\0b", "\ud800", 10**600], ids=short)
    def test_a_user_who_cannot_be(self, user):
        assert request_read(example(user={"buyeruid": user, "id": "17"})).user is None

    @pytest.mark.parametrize("user", [None, "", True, 1.5, [], ["1"], {}, {"id": "1"}], ids=short)
    def test_what_is_no_user_is_looked_for_elsewhere(self, user):
        assert request_read(example(user={"buyeruid": user, "id": "17"})).user == "17"

    @pytest.mark.parametrize("user", ["x" * 512, 17, -1], ids=short)
    def test_a_user(self, user):
        assert request_read(example(user={"buyeruid": user})).user == str(user)

    @pytest.mark.parametrize("part", ["user", "device", "regs"])
    @pytest.mark.parametrize("value", [*NO_VALUES, *VALUES], ids=short)
    def test_who_it_is_stands_nowhere(self, part, value):
        assert request_read(example(**{"user": {}, part: value})).user is None

    def test_they_are_answered(self, serve):
        server = serve(openrtb=ALL)
        dear(server, "wide", format="300x250")
        request = example()
        request["imp"][0]["banner"] |= {"format": [{"w": 10**600, "h": 250}, {"w": -1, "h": 1}]}
        for value in NO_VALUES:
            odd = {"site": {"domain": value}, "device": {"devicetype": value}}
            (bid,) = bids(server, request | odd | {"user": {"buyeruid": value}})
            assert bid["adid"] == "wide"

    @pytest.mark.parametrize("depth", [100, 250, 400, 800, 5_000])
    def test_depth(self, serve, depth):
        server = serve(openrtb=ALL)
        dear(server, "wide", format="300x250")
        for inner, outer in (('{"domain":', "}"), ("[", "]")):
            deep = inner * depth + "1" + outer * depth
            text = json.dumps(example(site="HERE")).replace('"HERE"', deep)
            assert post_text(server, text).status_code in (200, 400)


ODD = (
    *NO_VALUES, *VALUES, -0.0, 1e-320, 2**53 + 1, 10**4299, "nan", "1", "${ADREC_AD_ID}", "x" * 512,
    {"\ud800": 1}, {"": {"": ""}}, {"x" * 600: "\0"}, {"model_dump": 1, "__class__": {}},
    [None] * 101, [{"w": 1, "h": 1}] * 100, ["x"] * 1_001, {"w": "1", "h": 1e5},
)  # fmt: skip
FULL = {
    "id": "1", "at": 1, "tmax": 20_000, "cur": ["USD"], "wseat": ["Agency1"], "bseat": ["other"],
    "badv": ["a.example", "b.example"], "bcat": ["IAB1"], "acat": [],
    "imp": [
        {
            "id": "1", "bidfloor": 0.0, "bidfloorcur": "USD", "tagid": "top",
            "banner": {"w": 300, "h": 250, "format": [{"w": 728, "h": 90}]},
            "pmp": {"private_auction": 0, "deals": [{"id": "d", "bidfloor": 0.1, "wseat": []}]},
        },
        {"id": "2", "video": {"mimes": ["video/mp4"], "w": 640}},
    ],
    "site": {"domain": "a.example", "page": "https://a.example/"},
    "device": {"devicetype": 1, "lmt": 0, "dnt": 0, "ifa": "AA00"},
    "user": {"id": "17", "buyeruid": "18", "consent": "CP"},
    "regs": {"gdpr": 1, "coppa": 0},
}  # fmt: skip


def places_in(content):
    """Each place in JSON that holds a value: what it is in, and where."""
    if isinstance(content, dict | list):
        for key in content if isinstance(content, dict) else range(len(content)):
            yield content, key
            yield from places_in(content[key])


def mutated(chance):
    """A bid request in which one to six values are others, are gone, or have come; mostly where an
    exchange may put anything."""
    request = copy.deepcopy(FULL)
    for _ in range(chance.randint(1, 6)):
        some = request
        if chance.random() < 0.8:
            some = {name: request[name] for name in ("site", "device", "user", "regs")}
        inside, key = chance.choice(list(places_in(some)))
        match chance.randrange(8):
            case 0 if inside is not some:
                del inside[key]
            case 1 if isinstance(inside, dict):
                name = chance.choice(["", "\ud800", "\0", "imp", "banner", "__dict__", "x" * 600])
                inside[name] = copy.deepcopy(chance.choice(ODD))
            case 2:
                inside[key] = [copy.deepcopy(inside[key])] * chance.choice([1, 3, 65])
            case _:
                inside[key] = copy.deepcopy(chance.choice(ODD))
        request |= some
    return request


class TestHostile:
    def test_mutated_requests(self, serve):
        server, chance = serve(openrtb=ALL), random.Random(0)
        dear(server, "wide", format="300x250", category="IAB2")
        seen = set()
        for _ in range(2_000):
            request = mutated(chance)
            found = post(server, request)
            assert found.status_code < 500, (str(request)[:2_000], found.text[:300])
            seen.add(found.status_code)
        assert seen == {200, 204, 400}
        assert bids(server, example())

    @pytest.mark.parametrize("value", ["9" * 4_301, "1e999", "-1e999", "NaN", "-Infinity"], ids=len)
    def test_numbers_that_are_none(self, serve, value):
        server = serve(openrtb=ALL)
        request = copy.deepcopy(FULL)
        for place, key in list(places_in(request)):
            before, place[key] = place[key], "HERE"
            text = json.dumps(request).replace('"HERE"', value)
            place[key] = before
            assert post_text(server, text).status_code < 500, (key, value)
