"""The engine's ends of the links: what frontends commit comes in, answers and news of models go out.

A frontend that dies is dropped, and what waits of it forgotten; one that comes in its place hears all the news there
has been, and has the same slots. Engines never block on frontends: what a link does not take is kept, and goes out when
the link is writable again.

Receiving, attaching and dropping are for one thread at a time, under the mutex of `loop.py`; any thread may send.
"""

import os
import select
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from service.batching.link import Commit, Event, Link, LinkClosed, ModelFacts, ModelGone, ModelReady


class _Ready(NamedTuple):
    """News of a model, told to each frontend with its own share of the slots. `arena` is a descriptor."""

    model: int
    facts: ModelFacts
    arena: int


class Links:
    """`epoll` has every link in it, edge-triggered. `dropped` is called with the mutex held."""

    def __init__(
        self,
        links: dict[int, Link],
        n_frontends: int,
        mutex: threading.Lock,
        dropped: Callable[[int], None],
    ) -> None:
        self.epoll = select.epoll()
        self._links: dict[int, Link] = {}
        self._n_frontends = n_frontends
        self._mutex = mutex
        self._dropped = dropped
        self._sending = [threading.Lock() for _ in range(n_frontends)]
        self._news: list[Event | _Ready] = []
        for frontend, link in links.items():
            self.attach(frontend, link)

    def __len__(self) -> int:
        return len(self._links)

    def attach(self, frontend: int, link: Link) -> None:
        """Under the mutex. The frontend hears what the others have heard."""
        self._links[frontend] = link
        self.epoll.register(link.fileno(), select.EPOLLIN | select.EPOLLET)
        for news in self._news:
            self._tell(frontend, news)

    def receive(self) -> Iterator[tuple[int, list[Commit]]]:
        """Under the mutex: everything that has been committed, by frontend."""
        for frontend, link in list(self._links.items()):
            try:
                if link.wants_write:
                    self._flush(frontend, link)
                more = True
                while more:
                    commits, more = link.receive_commits()
                    yield frontend, commits
            except LinkClosed:
                self.drop(frontend)

    def drop(self, frontend: int) -> None:
        """Under the mutex. Twice does no harm."""
        link = self._links.pop(frontend, None)
        if link is None:
            return
        with self._sending[frontend]:
            self.epoll.unregister(link.fileno())
            link.close()
        self._dropped(frontend)

    def send(self, frontend: int, records: bytes) -> None:
        """Answers. A frontend that is gone does not get them."""
        self._send(frontend, lambda link: link.send(records))

    def tell(self, event: Event) -> None:
        """All frontends, also those that come later."""
        self._tell_all(event)

    def tell_ready(self, index: int, facts: ModelFacts, arena: int) -> None:
        """A model answers. `arena` is kept, for frontends that come later."""
        self._tell_all(_Ready(index, facts, arena))

    def forget_ready(self, index: int) -> set[int]:
        """Under the mutex. Frontends that come from now on do not hear of it; those that may have."""
        (news,) = [news for news in self._news if isinstance(news, _Ready) and news.model == index]
        self._news.remove(news)
        os.close(news.arena)
        return set(self._links)

    def tell_gone(self, index: int, frontends: set[int]) -> None:
        """To those that `forget_ready` gave."""
        self._tell_each(frontends, ModelGone(index))

    def close(self) -> None:
        """Leave; every frontend sees an end of file."""
        with self._mutex:
            for frontend in list(self._links):
                self.drop(frontend)
            for news in self._news:
                if isinstance(news, _Ready):
                    os.close(news.arena)
            self._news.clear()
        self.epoll.close()

    def _tell_all(self, news: Event | _Ready) -> None:
        with self._mutex:
            self._news.append(news)
            told = set(self._links)
        self._tell_each(told, news)

    def _tell_each(self, frontends: set[int], news: Event | _Ready) -> None:
        for frontend in frontends:
            if not self._tell(frontend, news):
                with self._mutex:
                    self.drop(frontend)

    def _tell(self, frontend: int, news: Event | _Ready) -> bool:
        """False: it is gone."""
        if not isinstance(news, _Ready):
            return self._sent(frontend, lambda link: link.send_event(news))
        share = news.facts.capacity // self._n_frontends
        event = ModelReady(news.model, (frontend * share, (frontend + 1) * share), news.facts)
        return self._sent(frontend, lambda link: link.send_event(event, news.arena))

    def _send(self, frontend: int, send: Callable[[Link], None]) -> None:
        if not self._sent(frontend, send):
            with self._mutex:
                self.drop(frontend)

    def _sent(self, frontend: int, send: Callable[[Link], None]) -> bool:
        """False: nobody can read it any more. What the link does not take goes out when it is writable again."""
        try:
            with self._sending[frontend]:
                if (link := self._links.get(frontend)) is None:
                    return True
                send(link)
                if link.wants_write:
                    self.epoll.modify(link.fileno(), select.EPOLLIN | select.EPOLLOUT | select.EPOLLET)
        except LinkClosed:
            return False
        return True

    def _flush(self, frontend: int, link: Link) -> None:
        with self._sending[frontend]:
            link.flush()
            if not link.wants_write:
                self.epoll.modify(link.fileno(), select.EPOLLIN | select.EPOLLET)
