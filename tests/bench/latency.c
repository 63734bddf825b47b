// Open-loop HTTP/1.1 client: requests leave on a schedule, whatever became of the ones
// before, and latency counts from the scheduled instant: a stall is not left out.
//
//   latency ADDRESS PORT HOST RATE CONNECTIONS SECONDS
//
// Prints `SENT MEASURED FAILED P50 P99` with times in microseconds. The first half
// second warms up and is not measured. A request that finds every connection busy waits
// for one. FAILED counts requests that were not answered with 200, or not at all.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 256, ANSWER_MAX = 8192, TIMER = CONNECTIONS_MAX };
static const double WARM_UP_US = 500e3, LAST_ANSWER_US = 1e6;

// `due` is the scheduled instant of the request in flight, 0 when there is none.
struct connection {
    int fd;
    double due;
    size_t filled;
    char answer[ANSWER_MAX + 1];
};

static struct connection connections[CONNECTIONS_MAX];
static int connection_count, timer_fd, epoll_fd;
static char request[512];
static size_t request_length;
static float *latencies;
static long sent, measured, failed;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void watch(int fd, uint32_t key) {
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = key};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event)) die("epoll_ctl");
}

static void open_connections(const char *address, const char *port) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    if (inet_pton(AF_INET, address, &at.sin_addr) != 1) die("address");
    for (int i = 0; i < connection_count; i++) {
        int one = 1, fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (void *)&at, sizeof at)) die("connect");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        connections[i].fd = fd;
        watch(fd, i);
    }
}

// The length of the answer once its head is in, 0 before.
static size_t answer_length(struct connection *it) {
    it->answer[it->filled] = 0;
    char *head_end = strstr(it->answer, "\r\n\r\n");
    if (!head_end) return 0;
    char *length = strcasestr(it->answer, "\r\ncontent-length:");
    if (!length || length > head_end) {
        fprintf(stderr, "an answer without content-length: %s\n", it->answer);
        exit(1);
    }
    return head_end + 4 - it->answer + atoi(length + strlen("\r\ncontent-length:"));
}

static void receive(struct connection *it, double measure_from) {
    ssize_t got = read(it->fd, it->answer + it->filled, ANSWER_MAX - it->filled);
    if (got <= 0) {
        fprintf(stderr, "a connection was closed\n");
        exit(1);
    }
    it->filled += got;
    size_t length = answer_length(it);
    if (length == 0 || it->filled < length) return;
    if (strncmp(it->answer, "HTTP/1.1 200 ", 13)) failed++;
    else if (it->due >= measure_from) latencies[measured++] = now_us() - it->due;
    it->due = 0;
    it->filled = 0;
}

// False when every connection is busy.
static int send_due(double due) {
    static int next;
    for (int tried = 0; tried < connection_count; tried++) {
        struct connection *it = &connections[next];
        next = (next + 1) % connection_count;
        if (it->due > 0) continue;
        it->due = due;
        sent++;
        if (write(it->fd, request, request_length) != (ssize_t)request_length) die("write");
        return 1;
    }
    return 0;
}

static void wake_at(double due) {
    long long ns = due * 1e3;
    struct itimerspec at = {.it_value = {ns / 1000000000, ns % 1000000000}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &at, NULL);
}

static int in_flight(void) {
    int count = 0;
    for (int i = 0; i < connection_count; i++) count += connections[i].due > 0;
    return count;
}

static void drive(double rate, double seconds) {
    double start = now_us() + 1000, end = start + seconds * 1e6, due = start;
    while (due < end || in_flight()) {
        struct epoll_event events[64];
        if (due < end) wake_at(due);
        int count = epoll_wait(epoll_fd, events, 64, 100);
        for (int i = 0; i < count; i++) {
            uint64_t ticks;
            if (events[i].data.u32 != TIMER)
                receive(&connections[events[i].data.u32], start + WARM_UP_US);
            else if (read(timer_fd, &ticks, sizeof ticks) < 0) continue;
        }
        while (due < end && due <= now_us() && send_due(due)) due += 1e6 / rate;
        if (end + LAST_ANSWER_US < now_us()) break;
    }
    failed += in_flight() + (due < end ? (end - due) * rate / 1e6 : 0);
}

int main(int argc, char **argv) {
    if (argc != 7)
        return fprintf(stderr, "usage: latency ADDRESS PORT HOST RATE CONNECTIONS SECONDS\n"), 2;
    double rate = atof(argv[4]), seconds = atof(argv[6]);
    connection_count = atoi(argv[5]);
    if (connection_count < 1 || CONNECTIONS_MAX < connection_count) die("connections");
    prctl(PR_SET_TIMERSLACK, 1);
    request_length = snprintf(
        request, sizeof request, "GET /s HTTP/1.1\r\nHost: %s\r\n\r\n", argv[3]);
    latencies = calloc(rate * seconds + 1000, sizeof *latencies);
    epoll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    open_connections(argv[1], argv[2]);
    watch(timer_fd, TIMER);
    drive(rate, seconds);
    if (measured == 0) return fprintf(stderr, "nothing was measured\n"), 1;
    qsort(latencies, measured, sizeof *latencies, ascending);
    printf("%ld %ld %ld %.1f %.1f\n", sent, measured, failed, latencies[measured / 2],
           latencies[(long)(measured * 0.99)]);
}
