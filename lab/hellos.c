/* Clients that say a TLS ClientHello and read the answer to its end, and a server that answers them
 * at once: sockets of the host's own stack on both sides, and no cryptography, which would cost more
 * than all that is to be measured.
 *
 *   hellos answer ADDRESS PORT
 *   hellos send ADDRESS PORT SECONDS CONNECTIONS < HELLOS
 *
 * The server reads one record, and refuses the handshake (RFC 8446 §6.2). So many connections are
 * open at a time. HELLOS: each after its length, 4 octets in network byte order. Printed at the
 * end: connections that were answered, those that failed, and the slowest 1 % in microseconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FDS 65536
#define MAX_HELLOS 4096
#define MAX_EVENTS 256
#define MAX_TIMES (1 << 22)
#define RECORD_HEADER_LEN 5U
#define PATIENCE_US 3000000
#define BACKLOG 8192

static const uint8_t refusal[] = {0x15, 3, 3, 0, 2, 2, 40};

static int epoll;

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static uint64_t now_us(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000000ULL + now.tv_nsec / 1000;
}

static struct sockaddr_in address_of(const char *host, const char *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};

	if (inet_pton(AF_INET, host, &address.sin_addr) != 1)
		die(host);
	return address;
}

static void watch(int fd, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.fd = fd};

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		die("epoll_ctl");
}

/* --- the server --- */

static struct {
	uint32_t read;
	uint8_t header[RECORD_HEADER_LEN];
} records[MAX_FDS];

/* Returns: whether the connection is done with. */
static int is_answered(int fd)
{
	static uint8_t octets[1 << 16];

	for (;;) {
		ssize_t length = read(fd, octets, sizeof(octets));
		uint32_t before = records[fd].read, content;

		if (length < 0)
			return errno != EAGAIN;
		if (length == 0)
			return 1;
		for (ssize_t i = 0; i < length && before + i < RECORD_HEADER_LEN; i++)
			records[fd].header[before + i] = octets[i];
		records[fd].read += length;
		content = records[fd].header[3] << 8 | records[fd].header[4];
		if (records[fd].read >= RECORD_HEADER_LEN + content && before + length >= RECORD_HEADER_LEN) {
			if (write(fd, refusal, sizeof(refusal)) < 0)
				perror("write");
			return 1;
		}
	}
}

static void answer(const char *host, const char *port)
{
	struct sockaddr_in address = address_of(host, port);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
	struct epoll_event events[MAX_EVENTS];

	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one));
	if (bind(listener, (struct sockaddr *)&address, sizeof(address)) ||
	    listen(listener, BACKLOG))
		die("listen");
	watch(listener, EPOLLIN);
	for (;;) {
		int count = epoll_wait(epoll, events, MAX_EVENTS, -1);

		for (int i = 0; i < count; i++) {
			int fd = events[i].data.fd;

			if (fd != listener) {
				if (is_answered(fd))
					close(fd);
				continue;
			}
			while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
				records[fd].read = 0;
				if (is_answered(fd))
					close(fd);
				else
					watch(fd, EPOLLIN);
			}
		}
	}
}

/* --- the clients --- */

static struct {
	uint8_t *octets;
	uint32_t length;
} hellos[MAX_HELLOS];

static struct {
	uint64_t begun_us; /* 0: no client's */
	uint32_t hello;
	int is_said;
	int is_heard;
} clients[MAX_FDS];

static uint32_t hello_count, next_hello, times[MAX_TIMES];
static uint64_t answered, failed;

static void read_hellos(void)
{
	uint32_t length;

	while (hello_count < MAX_HELLOS && fread(&length, 4, 1, stdin) == 1) {
		hellos[hello_count].length = ntohl(length);
		hellos[hello_count].octets = malloc(ntohl(length));
		if (fread(hellos[hello_count].octets, ntohl(length), 1, stdin) != 1)
			die("HELLOS");
		hello_count++;
	}
	if (!hello_count)
		die("HELLOS");
}

static void begin(const struct sockaddr_in *address)
{
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);

	if (fd < 0 || fd >= MAX_FDS)
		die("socket");
	if (connect(fd, (struct sockaddr *)address, sizeof(*address)) && errno != EINPROGRESS)
		die("connect");
	clients[fd].begun_us = now_us();
	clients[fd].hello = next_hello++ % hello_count;
	clients[fd].is_said = clients[fd].is_heard = 0;
	watch(fd, EPOLLIN | EPOLLOUT | EPOLLET);
}

static void end(int fd, int is_good)
{
	if (is_good)
		times[answered++ % MAX_TIMES] = now_us() - clients[fd].begun_us;
	else
		failed++;
	clients[fd].begun_us = 0;
	close(fd);
}

/* Returns: whether the connection has ended. */
static int go_on(int fd, uint32_t events)
{
	uint8_t octets[4096];

	if (!clients[fd].is_said && events & EPOLLOUT) {
		uint32_t hello = clients[fd].hello;

		if (write(fd, hellos[hello].octets, hellos[hello].length) !=
		    (ssize_t)hellos[hello].length) {
			end(fd, 0);
			return 1;
		}
		clients[fd].is_said = 1;
	}
	for (;;) {
		ssize_t length = read(fd, octets, sizeof(octets));

		if (length > 0) {
			clients[fd].is_heard = 1;
			continue;
		}
		if (length < 0 && errno == EAGAIN)
			return 0;
		end(fd, length == 0 && clients[fd].is_heard);
		return 1;
	}
}

static int compare(const void *one, const void *other)
{
	uint32_t a = *(const uint32_t *)one, b = *(const uint32_t *)other;

	return (a > b) - (a < b);
}

static void send_hellos(const char *host, const char *port, double seconds, int connections)
{
	struct sockaddr_in address = address_of(host, port);
	uint64_t until_us = now_us() + seconds * 1e6, look_us = now_us() + 100000;
	struct epoll_event events[MAX_EVENTS];
	uint64_t count;

	read_hellos();
	for (int i = 0; i < connections; i++)
		begin(&address);
	while (now_us() < until_us) {
		int ready = epoll_wait(epoll, events, MAX_EVENTS, 100);

		for (int i = 0; i < ready; i++)
			if (go_on(events[i].data.fd, events[i].events))
				begin(&address);
		if (now_us() < look_us)
			continue;
		look_us = now_us() + 100000;
		for (int fd = 0; fd < MAX_FDS; fd++) {
			if (clients[fd].begun_us && clients[fd].begun_us + PATIENCE_US < now_us()) {
				end(fd, 0);
				begin(&address);
			}
		}
	}
	count = answered < MAX_TIMES ? answered : MAX_TIMES;
	qsort(times, count, sizeof(*times), compare);
	printf("%llu %llu %u\n", (unsigned long long)answered, (unsigned long long)failed,
	       count ? times[count * 99 / 100] : 0);
}

int main(int argc, char **argv)
{
	struct rlimit many = {MAX_FDS, MAX_FDS};

	setrlimit(RLIMIT_NOFILE, &many);
	signal(SIGPIPE, SIG_IGN);
	epoll = epoll_create1(0);
	if (argc == 4 && !strcmp(argv[1], "answer"))
		answer(argv[2], argv[3]);
	else if (argc == 6 && !strcmp(argv[1], "send"))
		send_hellos(argv[2], argv[3], atof(argv[4]), atoi(argv[5]));
	else
		return fprintf(stderr, "hellos answer|send ADDRESS PORT …\n"), 2;
	return 0;
}
