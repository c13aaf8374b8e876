"""How evenly do 64 keep-alive connections spread over frontends: SO_REUSEPORT against one shared listener."""
import asyncio, os, socket, sys, time, signal, statistics
import uvloop
def listener(reuse, addr=("127.0.0.1",0)):
    s=socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR,1)
    if reuse: s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT,1)
    s.bind(addr); return s
def child(sock, w):
    n=[0]
    class P(asyncio.Protocol):
        def connection_made(self,t): n[0]+=1; self.t=t
        def data_received(self,d): self.t.write(d)
    async def main():
        loop=asyncio.get_running_loop()
        srv=await loop.create_server(P, sock=sock, backlog=2048)
        await asyncio.sleep(SECS); os.write(w, b"%d\n"%n[0])
    uvloop.run(main()); os._exit(0)
SECS=1.5
def trial(reuse, n_front, n_conn, ramp):
    socks=[listener(reuse)]
    if reuse: socks+= [listener(True, socks[0].getsockname()) for _ in range(n_front-1)]
    for s in socks: s.listen(2048)
    r,w=os.pipe(); pids=[]
    for i in range(n_front):
        pid=os.fork()
        if not pid: child(socks[i if reuse else 0], w)
        pids.append(pid)
    time.sleep(0.5); os.close(w)
    cs=[]
    for i in range(n_conn):
        c=socket.create_connection(socks[0].getsockname()); c.send(b"x"); cs.append(c)
        if ramp: c.recv(1); time.sleep(0.0005)
    for p in pids: os.waitpid(p,0)
    got=sorted(int(x) for x in os.read(r,1000).split()); os.close(r)
    for c in cs+socks: c.close()
    return got
for n_front in (2,4):
    for n_conn in (8,64):
        for ramp in (False,True):
            for reuse in (True,False):
                ts=[trial(reuse,n_front,n_conn,ramp) for _ in range(6)]
                worst=statistics.mean(max(t)/(n_conn/n_front) for t in ts)
                print(f"{n_front} frontends, {n_conn} connections, {'one by one' if ramp else 'at once'}: {'reuseport' if reuse else 'shared   '} busiest has {worst:.2f}x its share  {ts[:3]}")
