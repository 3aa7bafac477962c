"""A server of a live stream for one viewer: RTSP (RFC 2326), H.264 over RTP by UDP, which FFmpeg sends."""

import contextlib
import re
import socketserver
import threading
import time

import av

RATE = 25  # frames a second

# Of the description, what FFmpeg needs; parameter sets come in the stream.
_DESCRIPTION = f"""v=0
o=- 0 0 IN IP4 127.0.0.1
s=test
c=IN IP4 127.0.0.1
t=0 0
m=video 0 RTP/AVP 96
a=rtpmap:96 H264/90000
a=fmtp:96 packetization-mode=1
a=framerate:{RATE}
a=control:video
"""


class Server(socketserver.ThreadingTCPServer):
    """Plays RGB images, `RATE` a second, to who asks for `address`; then says goodbye, or nothing more.

    Args:
        images: uint8 (T, H, W, 3), H and W even.
        goodbye: whether the stream ends; else it falls silent.
    """

    daemon_threads = True

    def __init__(self, images, goodbye=True):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.images, self.goodbye = images, goodbye
        self.address = f"rtsp://127.0.0.1:{self.server_address[1]}/camera"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(ConnectionError):  # a viewer may leave without a word
            self._answer()

    def _answer(self):
        port = None
        while line := self.rfile.readline().decode():
            method, headers = line.split()[0], {}
            while (header := self.rfile.readline().decode().strip()) != "":
                name, value = header.split(":", 1)
                headers[name.lower()] = value.strip()
            answer, body = ["RTSP/1.0 200 OK", f"CSeq: {headers['cseq']}", "Session: 1"], ""
            if method == "DESCRIBE":
                body = _DESCRIPTION.replace("\n", "\r\n")
                answer += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
            if method == "SETUP":
                port = int(re.search(r"client_port=(\d+)", headers["transport"])[1])
                answer += [f"Transport: RTP/AVP;unicast;client_port={port}-{port + 1};server_port=9-10"]
            self.wfile.write(("\r\n".join(answer) + "\r\n\r\n" + body).encode())
            if method == "PLAY":
                threading.Thread(target=self._play, args=(port,), daemon=True).start()

    def _play(self, port):
        address, options = f"rtp://127.0.0.1:{port}", {"rtpflags": "send_bye"} if self.server.goodbye else {}
        lossless = {"tune": "zerolatency", "qp": "0"}
        with av.open(address, "w", format="rtp", options=options) as out:
            stream = out.add_stream("libx264", rate=RATE, options=lossless)
            stream.height, stream.width = self.server.images.shape[1:3]
            stream.pix_fmt = "yuv444p"
            for image in self.server.images:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
                time.sleep(1 / RATE)
            out.mux(stream.encode())
