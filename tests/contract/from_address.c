/* Connections from the address in FROM_ADDRESS, for processes that preload this: see test_blocklist.py. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

int connect(int connection, const struct sockaddr *to, socklen_t length)
{
    const char *from = getenv("FROM_ADDRESS");
    if (from && to->sa_family == AF_INET) {
        struct sockaddr_in own = { .sin_family = AF_INET };
        inet_pton(AF_INET, from, &own.sin_addr);
        bind(connection, (struct sockaddr *)&own, sizeof own);
    }
    return syscall(SYS_connect, connection, to, length);
}
