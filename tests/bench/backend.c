// The upstream every peer forwards to: one thread, as little work as possible.
//
//   backend ADDRESS HTTP_PORT STREAM_PORT
//
// HTTP_PORT answers each HTTP/1.1 request without a body with 200 and 128 bytes.
// STREAM_PORT is no HTTP: the client sends 8 bytes, a big-endian count below 2^56, so
// the first byte is zero and no proxy can take it for a protocol it knows; the server
// sends that many bytes and closes.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FDS_MAX = 32768, REQUEST_MAX = 8192, BODY = 128, CHUNK = 4 << 20, EVENTS = 256 };

enum kind { FREE, LISTENER_HTTP, LISTENER_STREAM, HTTP, STREAM_COUNT, STREAM_BODY };

struct connection {
    enum kind kind;
    char *request;
    size_t filled;
    uint64_t left;
};

static struct connection connections[FDS_MAX];
static char response[512];
static size_t response_length;
static int epoll_fd, chunk_fd;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void watch(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = fd};
    if (epoll_ctl(epoll_fd, operation, fd, &event)) die("epoll_ctl");
}

static void end(int fd) {
    free(connections[fd].request);
    memset(&connections[fd], 0, sizeof connections[fd]);
    close(fd);
}

static void listen_on(const char *address, const char *port, enum kind kind) {
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (fd < 0 || inet_pton(AF_INET, address, &at.sin_addr) != 1) die("socket");
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (void *)&at, sizeof at) || listen(fd, 4096)) die("bind");
    connections[fd].kind = kind;
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
}

static void accept_all(int listener) {
    enum kind kind = connections[listener].kind == LISTENER_HTTP ? HTTP : STREAM_COUNT;
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= FDS_MAX) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[fd] = (struct connection){.kind = kind, .request = malloc(REQUEST_MAX)};
        watch(EPOLL_CTL_ADD, fd, EPOLLIN);
    }
}

// Reads what there is; false when the connection ended or has nothing to say yet.
static int fill(int fd) {
    struct connection *it = &connections[fd];
    ssize_t got = read(fd, it->request + it->filled, REQUEST_MAX - it->filled);
    if (got < 0 && errno == EAGAIN) return 0;
    if (got <= 0) {
        end(fd);
        return 0;
    }
    it->filled += got;
    return 1;
}

static void answer_http(int fd) {
    struct connection *it = &connections[fd];
    if (!fill(fd)) return;
    char *at = it->request, *head_end;
    while ((head_end = memmem(at, it->filled, "\r\n\r\n", 4))) {
        size_t length = head_end + 4 - at;
        at += length;
        it->filled -= length;
        if (write(fd, response, response_length) != (ssize_t)response_length) return end(fd);
    }
    if (it->filled == REQUEST_MAX) return end(fd);
    memmove(it->request, at, it->filled);
}

static void send_stream(int fd) {
    struct connection *it = &connections[fd];
    while (it->left > 0) {
        off_t from = 0;
        ssize_t sent = sendfile(fd, chunk_fd, &from, it->left < CHUNK ? it->left : CHUNK);
        if (sent < 0 && errno == EAGAIN) return;
        if (sent <= 0) return end(fd);
        it->left -= sent;
    }
    end(fd);
}

static void read_count(int fd) {
    struct connection *it = &connections[fd];
    if (!fill(fd) || it->filled < 8) return;
    for (int i = 0; i < 8; i++) it->left = it->left << 8 | (unsigned char)it->request[i];
    it->kind = STREAM_BODY;
    watch(EPOLL_CTL_MOD, fd, EPOLLOUT);
    send_stream(fd);
}

static void serve(int fd) {
    switch (connections[fd].kind) {
    case LISTENER_HTTP:
    case LISTENER_STREAM: return accept_all(fd);
    case HTTP: return answer_http(fd);
    case STREAM_COUNT: return read_count(fd);
    case STREAM_BODY: return send_stream(fd);
    case FREE: return;
    }
}

int main(int argc, char **argv) {
    if (argc != 4) return fprintf(stderr, "usage: backend ADDRESS HTTP_PORT STREAM_PORT\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    response_length = sprintf(
        response, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", BODY);
    memset(response + response_length, 's', BODY);
    response_length += BODY;
    chunk_fd = memfd_create("chunk", 0);
    if (chunk_fd < 0 || ftruncate(chunk_fd, CHUNK)) die("memfd_create");
    if ((epoll_fd = epoll_create1(0)) < 0) die("epoll_create1");
    listen_on(argv[1], argv[2], LISTENER_HTTP);
    listen_on(argv[1], argv[3], LISTENER_STREAM);
    for (;;) {
        struct epoll_event events[EVENTS];
        int count = epoll_wait(epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) serve(events[i].data.fd);
    }
}
