// Client of the backend's stream port: asks for a count of bytes and reads to the end.
//
//   stream ADDRESS PORT bulk MIB            one connection, MIB mebibytes
//   stream ADDRESS PORT connect AT_A_TIME SECONDS
//                                           new connections of 128 bytes, AT_A_TIME at once
//
// Prints `DONE FAILED SECONDS`, where DONE is mebibytes or connections. A connection
// that ends short, ends long, is refused or is silent for 5 s has failed.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { AT_A_TIME_MAX = 1024, SILENCE_MS = 5000, SMALL = 128 };

struct connection {
    int fd;
    int asked;
    size_t got;
};

static struct sockaddr_in server = {.sin_family = AF_INET};
static struct connection connections[AT_A_TIME_MAX];
static int epoll_fd, open_count;
static long done, failed;

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static void encode(uint64_t count, unsigned char out[8]) {
    for (int i = 7; i >= 0; i--, count >>= 8) out[i] = count & 0xff;
}

// Bytes are counted and dropped in the kernel: the client must not be the bottleneck.
static int bulk(uint64_t wanted) {
    unsigned char ask[8];
    encode(wanted, ask);
    struct timeval silence = {.tv_sec = SILENCE_MS / 1000};
    uint64_t got = 0;
    ssize_t n = 0;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &silence, sizeof silence);
    if (connect(fd, (void *)&server, sizeof server)) return perror("connect"), 0;
    if (write(fd, ask, sizeof ask) != sizeof ask) return perror("write"), 0;
    while ((n = recv(fd, NULL, 1 << 20, MSG_TRUNC)) > 0) got += n;
    if (n < 0) perror("recv");
    if (got != wanted) fprintf(stderr, "%lu of %lu bytes\n", got, wanted);
    return n == 0 && got == wanted;
}

static void begin(int slot) {
    struct connection *it = &connections[slot];
    *it = (struct connection){.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0)};
    if (connect(it->fd, (void *)&server, sizeof server) && errno != EINPROGRESS) {
        perror("connect");
        exit(1);
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.u32 = slot};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, it->fd, &event);
    open_count++;
}

static void ask(int slot) {
    struct connection *it = &connections[slot];
    unsigned char count[8];
    encode(SMALL, count);
    if (write(it->fd, count, sizeof count) != sizeof count) return;
    it->asked = 1;
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = slot};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, it->fd, &event);
}

// True when the connection has ended, well or not.
static int receive(int slot) {
    struct connection *it = &connections[slot];
    char bytes[1024];
    ssize_t n = read(it->fd, bytes, sizeof bytes);
    if (n > 0) it->got += n;
    if (n > 0 || (n < 0 && errno == EAGAIN)) return 0;
    if (n == 0 && it->asked && it->got == SMALL) done++;
    else failed++;
    close(it->fd);
    open_count--;
    return 1;
}

static void connect_repeatedly(int at_a_time, double end) {
    epoll_fd = epoll_create1(0);
    for (int slot = 0; slot < at_a_time; slot++) begin(slot);
    while (open_count > 0) {
        struct epoll_event events[256];
        int count = epoll_wait(epoll_fd, events, 256, SILENCE_MS);
        if (count == 0) {
            failed += open_count;
            return;
        }
        for (int i = 0; i < count; i++) {
            int slot = events[i].data.u32;
            if (events[i].events & EPOLLOUT && !connections[slot].asked) ask(slot);
            if (!(events[i].events & ~EPOLLOUT)) continue;
            if (receive(slot) && now_s() < end) begin(slot);
        }
    }
}

int main(int argc, char **argv) {
    int is_bulk = argc == 5 && !strcmp(argv[3], "bulk");
    int is_connect = argc == 6 && !strcmp(argv[3], "connect");
    if (!is_bulk && !is_connect)
        return fprintf(stderr, "usage: stream ADDRESS PORT bulk MIB | connect AT_A_TIME SECONDS\n"), 2;
    server.sin_port = htons(atoi(argv[2]));
    if (inet_pton(AF_INET, argv[1], &server.sin_addr) != 1) return perror("address"), 2;
    double start = now_s();
    if (is_bulk) {
        long mib = atol(argv[4]);
        if (bulk((uint64_t)mib << 20)) done = mib;
        else failed = 1;
    } else {
        int at_a_time = atoi(argv[4]);
        if (at_a_time < 1 || AT_A_TIME_MAX < at_a_time) return fprintf(stderr, "AT_A_TIME\n"), 2;
        connect_repeatedly(at_a_time, start + atof(argv[5]));
    }
    printf("%ld %ld %.6f\n", done, failed, now_s() - start);
}
