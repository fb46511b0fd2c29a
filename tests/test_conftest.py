import socket

import pytest


def test_connection_to_another_machine_is_refused():
    with socket.socket() as connection, pytest.raises(OSError, match="tests have no network"):
        connection.connect(("192.0.2.1", 80))


def test_name_of_another_machine_is_not_looked_up():
    with pytest.raises(OSError, match="tests have no network"):
        socket.getaddrinfo("example.org", 80)


def test_connection_on_this_machine_works():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass
