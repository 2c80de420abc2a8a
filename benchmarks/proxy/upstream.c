/* The engine of the forwarding benchmark: an epoll server with negligible cost.
 *
 *   upstream PORT
 *
 * POST anything          -> 1 KB of JSON, connection kept
 * GET /sse?n=N&us=U      -> N server-sent events, one per U microseconds (0: as fast as the socket accepts
 *                           them), each with its creation time in CLOCK_MONOTONIC nanoseconds; then [DONE]
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <linux/sockios.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_FDS = 4096, IN_SIZE = 65536 };

struct conn {
    int open, streaming;
    long left, interval_ns;   /* events to send; nanoseconds between two */
    int64_t due;
    size_t len;               /* bytes in `in` */
    char in[IN_SIZE];
};

static struct conn *conns[MAX_FDS];
static int num_streaming;
static char json_response[2048];
static size_t json_len;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void close_conn(int fd) {
    if (conns[fd]->streaming) num_streaming--;
    conns[fd]->open = conns[fd]->streaming = 0;
    close(fd);
}

/* One event of about 200 bytes, like an OpenAI stream's, in its own chunk. */
static int send_event(int fd) {
    char event[512], chunk[600];
    int n = snprintf(event, sizeof event,
                     "data: {\"t\":%019lld,\"id\":\"cmpl-0123456789abcdef\",\"object\":\"text_completion\","
                     "\"created\":1700000000,\"model\":\"bench\",\"choices\":[{\"index\":0,\"text\":\" word\","
                     "\"logprobs\":null,\"finish_reason\":null}]}\n\n",
                     (long long)now_ns());
    int m = snprintf(chunk, sizeof chunk, "%x\r\n%.*s\r\n", n, n, event);
    return send(fd, chunk, m, MSG_DONTWAIT | MSG_NOSIGNAL) == m;  /* a short send ends the stream: see advance */
}

/* Send the events that are due. An unpaced stream with a full socket is retried in the next iteration. */
static void advance(int fd, int64_t now) {
    struct conn *c = conns[fd];
    int burst = 16, unsent = 0;
    /* Never start events that might not fit: bound the bytes that the peer has not read yet. */
    if (!c->streaming || c->due > now || ioctl(fd, SIOCOUTQ, &unsent) || unsent > 32768) return;
    while (c->left > 0 && c->due <= now && burst-- > 0) {
        if (!send_event(fd)) {
            close_conn(fd);
            return;
        }
        c->left--;
        c->due += c->interval_ns;
    }
    if (c->left == 0) {
        static const char end[] = "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
        c->streaming = 0;
        num_streaming--;
        if (send(fd, end, sizeof end - 1, MSG_DONTWAIT | MSG_NOSIGNAL) < 0) close_conn(fd);
    }
}

/* Length of the first whole request in the buffer, or 0. */
static size_t whole_request(struct conn *c) {
    c->in[c->len] = 0;
    char *end = strstr(c->in, "\r\n\r\n");
    if (!end) return 0;
    size_t size = end + 4 - c->in;
    char *length = strcasestr(c->in, "content-length:");
    char *chunked = strcasestr(c->in, "transfer-encoding: chunked");
    if (chunked && chunked < end) {
        char *last = strstr(end + 2, "\r\n0\r\n\r\n");
        return last ? (size_t)(last + 7 - c->in) : 0;
    }
    if (length && length < end) size += atol(length + 15);
    return size <= c->len ? size : 0;
}

static void serve(int fd) {
    struct conn *c = conns[fd];
    ssize_t got = recv(fd, c->in + c->len, IN_SIZE - 1 - c->len, MSG_DONTWAIT);
    if (got <= 0) {
        if (got == 0 || errno != EAGAIN) close_conn(fd);
        return;
    }
    c->len += got;
    for (size_t size; c->open && (size = whole_request(c)) > 0;) {
        char *query = strstr(c->in, "?n=");
        if (!strncmp(c->in, "GET ", 4) && query) {
            static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                                       "cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n";
            c->left = atol(query + 3);
            c->interval_ns = atol(strstr(query, "us=") + 3) * 1000;
            c->due = now_ns() + (c->interval_ns ? (fd * 7919000LL) % c->interval_ns : 0);
            c->streaming = 1;
            num_streaming++;
            if (send(fd, head, sizeof head - 1, MSG_NOSIGNAL) < 0) { close_conn(fd); return; }
        } else if (send(fd, json_response, json_len, MSG_NOSIGNAL) < 0) {
            close_conn(fd);
            return;
        }
        memmove(c->in, c->in + size, c->len - size);
        c->len -= size;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) return 2;
    int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1, poll = epoll_create1(0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1024)) {
        perror("upstream");
        return 1;
    }
    char pad[1024];
    memset(pad, 'x', sizeof pad);
    json_len = snprintf(json_response, sizeof json_response,
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1024\r\n\r\n"
                        "{\"text\":\"%.1013s\"}", pad);
    struct epoll_event add = {.events = EPOLLIN, .data.fd = listener}, ready[256];
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &add);
    for (;;) {
        struct timespec wait = {0, 0}, *timeout = NULL;
        if (num_streaming) {
            int64_t now = now_ns(), first = INT64_MAX;
            for (int fd = 0; fd < MAX_FDS; fd++)
                if (conns[fd] && conns[fd]->streaming) {
                    advance(fd, now);
                    if (conns[fd]->streaming && conns[fd]->due < first) first = conns[fd]->due;
                }
            int64_t left = first == INT64_MAX ? 1000000 : first - now_ns();
            if (left < 0) left = 20000;  /* due, but its socket is full */
            wait.tv_sec = left / 1000000000LL;
            wait.tv_nsec = left % 1000000000LL;
            timeout = &wait;
        }
        int num = epoll_pwait2(poll, ready, 256, timeout, NULL);
        for (int i = 0; i < num; i++) {
            int fd = ready[i].data.fd;
            if (fd != listener) { serve(fd); continue; }
            fd = accept(listener, NULL, NULL);
            if (fd < 0 || fd >= MAX_FDS) { if (fd >= 0) close(fd); continue; }
            setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
            if (!conns[fd]) conns[fd] = malloc(sizeof **conns);
            conns[fd]->open = 1;
            conns[fd]->streaming = 0;
            conns[fd]->len = 0;
            add.data.fd = fd;
            epoll_ctl(poll, EPOLL_CTL_ADD, fd, &add);
        }
    }
}
