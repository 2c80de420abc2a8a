/* The load generator of the forwarding benchmark: one epoll loop.
 *
 *   load json PORT PREFIX CONNECTIONS SECONDS        closed loop of 1 KB POSTs
 *   load sse  PORT PREFIX STREAMS EVENTS INTERVAL_US SECONDS   streams of events with time stamps
 *
 * Prints one line of JSON: count, seconds, p50 and p99 in microseconds (json: per request; sse: from an
 * event's creation to its arrival), errors.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_CONNS = 1024, IN_SIZE = 1 << 18, MAX_SAMPLES = 1 << 22 };

struct conn {
    int fd;
    int64_t started;
    long events;
    size_t len;
    char in[IN_SIZE + 1];
};

static uint32_t samples[MAX_SAMPLES];
static size_t num_samples;
static long count, errors, finished;
static char request[4096];
static size_t request_len;
static int port, poll_fd;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void sample(int64_t ns) {
    count++;
    if (num_samples < MAX_SAMPLES) samples[num_samples++] = ns < 0 ? 0 : ns > UINT32_MAX ? UINT32_MAX : ns;
}

static void start(struct conn *c) {
    c->started = now_ns();
    c->len = 0;
    if (send(c->fd, request, request_len, MSG_NOSIGNAL) != (ssize_t)request_len) errors++;
}

static void dial(struct conn *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct epoll_event add = {.events = EPOLLIN, .data.ptr = c};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) { perror("load"); exit(1); }
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, c->fd, &add);
}

/* Whether the buffer holds a whole response; counts it as an error unless its status is 200. */
static int whole_response(struct conn *c) {
    c->in[c->len] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    char *length = strcasestr(c->in, "content-length:");
    if (length && length < end) {
        if ((size_t)(end + 4 - c->in) + atol(length + 15) > c->len) return 0;
    } else if (c->len < 5 || memcmp(c->in + c->len - 5, "0\r\n\r\n", 5)) {
        return 0;
    }
    if (memcmp(c->in + 9, "200", 3)) errors++;
    return 1;
}

/* Extract the time stamps from the data received; keep an incomplete tail. */
static void take_events(struct conn *c) {
    static const char mark[] = "{\"t\":";
    char *at = c->in, *end = c->in + c->len, *hit;
    int64_t now = now_ns();
    while ((hit = memmem(at, end - at, mark, 5)) && end - hit >= 24) {
        sample(now - strtoll(hit + 5, NULL, 10));
        c->events++;
        at = hit + 24;
    }
    if (memmem(at, end - at, "[DONE]", 6)) { finished++; at = end; }
    size_t tail = end - at;
    if (tail > 64 && !hit) { at = end - 64; tail = 64; }
    memmove(c->in, at, tail);
    c->len = tail;
}

static int ascending(const void *a, const void *b) {
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int argc, char **argv) {
    if (argc < 6) return 2;
    int is_sse = !strcmp(argv[1], "sse"), num_conns = atoi(argv[4]);
    port = atoi(argv[2]);
    double seconds = atof(argv[is_sse ? 7 : 5]);
    char body[1025];
    memset(body, 'y', 1024);
    body[1024] = 0;
    if (is_sse)
        request_len = snprintf(request, sizeof request,
                               "GET %s/sse?n=%s&us=%s HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n",
                               argv[3], argv[5], argv[6]);
    else
        request_len = snprintf(request, sizeof request,
                               "POST %s/v1/completions HTTP/1.1\r\nHost: localhost\r\nUser-Agent: load\r\n"
                               "Accept: */*\r\nAuthorization: Bearer client\r\nContent-Type: application/json\r\n"
                               "Content-Length: 1024\r\n\r\n{\"model\":\"bench\",\"prompt\":\"%.995s\"}", argv[3], body);
    struct conn *conns = calloc(num_conns, sizeof *conns);
    struct epoll_event ready[256];
    poll_fd = epoll_create1(0);
    for (int i = 0; i < num_conns; i++) dial(&conns[i]);
    int64_t began = now_ns(), until = began + (int64_t)(seconds * 1e9), last = began;
    for (int i = 0; i < num_conns; i++) start(&conns[i]);
    while (now_ns() < until && finished < num_conns) {
        int num = epoll_wait(poll_fd, ready, 256, 50);
        for (int i = 0; i < num; i++) {
            struct conn *c = ready[i].data.ptr;
            ssize_t got = recv(c->fd, c->in + c->len, IN_SIZE - c->len, MSG_DONTWAIT);
            if (got <= 0) {
                if (!is_sse || c->events == 0) errors++;
                close(c->fd);
                if (is_sse) { finished++; continue; }
                dial(c);
                start(c);
                continue;
            }
            c->len += got;
            if (is_sse) {
                take_events(c);
            } else if (whole_response(c)) {
                sample(now_ns() - c->started);
                start(c);
            }
            last = now_ns();
        }
    }
    qsort(samples, num_samples, sizeof *samples, ascending);
    double p50 = num_samples ? samples[num_samples / 2] / 1e3 : 0;
    double p99 = num_samples ? samples[(size_t)(num_samples * 0.99)] / 1e3 : 0;
    printf("{\"count\":%ld,\"seconds\":%.6f,\"p50_us\":%.1f,\"p99_us\":%.1f,\"errors\":%ld}\n", count,
           (last - began) / 1e9, p50, p99, errors);
    return 0;
}
