"""uvicorn's HTTP/1.1 parser with our words: what it cannot parse is answered like every other error."""

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.frontend.http import error_body, request_id


class Protocol(HttpToolsProtocol):
    def send_400_response(self, msg: str) -> None:
        """Answer and close. `msg` is uvicorn's; it says no more than that the request is invalid."""
        body = error_body("not a valid HTTP/1.1 request")
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\n"
            b"content-type: application/json\r\n"
            b"content-length: %d\r\n"
            b"x-request-id: %s\r\n"
            b"server-timing: total;dur=0\r\n"
            b"connection: close\r\n\r\n%s" % (len(body), request_id(None).encode(), body)
        )
        self.transport.close()
