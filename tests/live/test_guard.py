import pytest

from persona_lens.live.serving.guard import LOOPBACK_NAMES, Hosts, find_refusal

OWN = Hosts()
OPEN = Hosts(LOOPBACK_NAMES | {"lab"}, any_address=True)


def refuse(method="GET", hosts=OWN, **headers):
    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return find_refusal(method, given, hosts)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8600", "127.0.0.1:1", "[::1]:8600", "[::1]"])
def test_the_servers_own_names_are_allowed_at_any_port_as_a_tunnel_has_another(host):
    assert not refuse(host=host)


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8600", "", "10.0.0.1"]
)
def test_a_foreign_name_that_points_here_is_refused(host):
    assert repr(host) in refuse(host=host)


def test_an_open_server_goes_by_its_name_and_by_any_address_but_by_no_other_name():
    assert not refuse(hosts=OPEN, host="192.168.1.7:8600")
    assert not refuse(hosts=OPEN, host="lab:8600")
    assert refuse(hosts=OPEN, host="evil.example:8600")


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9", "http://localhost:8600.evil.example"]
)
def test_a_page_of_another_origin_is_refused(method, origin):
    assert refuse(method, host="localhost:8600", origin=origin)


def test_the_page_itself_and_a_program_that_names_no_origin_are_answered():
    assert not refuse("POST", host="localhost:8600", origin="http://localhost:8600", sec_fetch_site="same-origin")
    assert not refuse("POST", host="localhost:8600")


def test_another_site_may_link_to_the_page_but_not_fetch_or_send():
    assert not refuse(host="localhost:8600", sec_fetch_site="cross-site", sec_fetch_mode="navigate")
    assert refuse(host="localhost:8600", sec_fetch_site="cross-site", sec_fetch_mode="no-cors")
    assert refuse("POST", host="localhost:8600", sec_fetch_site="same-site", sec_fetch_mode="navigate")


def test_a_second_host_header_is_refused():
    assert find_refusal("GET", [(b"host", b"localhost"), (b"host", b"evil.example")], OWN)
