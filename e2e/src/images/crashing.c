/* A release of a service that migrates its schema, and then crashes. */
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
  if (argc > 1 && strcmp(argv[1], "migrate") == 0)
    return 0;
  fputs("this release crashes, for tests of what a crashing release does\n", stderr);
  return 3;
}
