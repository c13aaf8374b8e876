"""CPU of the way in front of the handler: the short way, and Litestar's @asgi mount. No network, no engine."""
import asyncio, time, uvloop, gc
from pathlib import Path
from litestar import Litestar, asgi
from litestar.types import Scope, Receive, Send
from service.batching.client import Client
from service.batching.link import link_pair
from service.frontend.app import Frontend
from service.frontend.http import Request, Answer, send_answer
from service.metrics import RequestMetrics
from service.settings import Settings
async def main():
    loop=asyncio.get_running_loop()
    fl,_=link_pair(); m=RequestMetrics(); f=Frontend(Client(fl,m),Settings(),m)
    async def handler(scope, request, send, *_): await send_answer(send, request, Answer(b"{}"))
    f._short_way=handler
    @asgi("/predict", is_mount=True, copy_scope=False)
    async def mount(scope: Scope, receive: Receive, send: Send) -> None:
        await handler(scope, Request(scope, receive, loop), send)
    l=Litestar([mount],logging_config=None,openapi_config=None)
    async def receive(): return {"type":"http.request","body":b"","more_body":False}
    async def send(m): pass
    def scope(): return {"type":"http","path":"/predict/tiny","raw_path":b"/predict/tiny","root_path":"","query_string":b"","method":"POST","headers":[(b"host",b"127.0.0.1:8123"),(b"content-type",b"application/octet-stream"),(b"content-length",b"784")]}
    async def run(app,n=20000):
        t=time.thread_time()
        for _ in range(n): await app(scope(),receive,send)
        return (time.thread_time()-t)/n*1e6
    gc.freeze(); gc.set_threshold(100000,50,100)
    rs=[[],[]]
    for r in range(7):
        for i,a in enumerate((f,l)): rs[i].append(await run(a))
    for n,x in zip(("short way","@asgi mount"),rs): x.sort(); print(n,"median",round(x[3],2),"min",round(x[0],2),"max",round(x[-1],2))
uvloop.run(main())
