/* Writes two pages to a new file, of which only the first is synced, maps them, changes the second, says so, and waits for
 * a line; then the change must still be there. */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char pages[8192], line[16];
    int fd = open(argv[1], O_RDWR | O_CREAT | O_EXCL, 0644);
    memset(pages, 'a', sizeof pages);
    if (argc != 2 || fd < 0 || pwrite(fd, pages, 4096, 0) != 4096 || fsync(fd)) return 2;
    if (pwrite(fd, pages, 4096, 4096) != 4096) return 2;
    char *map = mmap(NULL, sizeof pages, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED) return 3;
    memcpy(map + 4096, "changed", 7);
    puts("mapped");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 4;
    if (memcmp(map + 4096, "changed", 7)) return 5;
    return msync(map, sizeof pages, MS_SYNC) || close(fd) ? 6 : 0;
}
