/* A release of a service that starts and crashes. */
#include <stdio.h>

int main(void) {
  fputs("this release crashes, for tests of what a crashing release does\n", stderr);
  return 3;
}
