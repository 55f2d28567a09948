/* Sharing work among threads that somebody else owns.
 *
 * This library starts no threads. It borrows the team that the process computes with already, through the functions that GNU's
 * OpenMP library has for compilers: two teams on the same cores would wait for one another, each spinning in the other's way.
 */
#ifndef BRAMBLE_TEAM_H
#define BRAMBLE_TEAM_H

#include <stdint.h>

/* Does the items [first, last) of a piece of work. */
typedef void (*range_work)(const void *work, int64_t first, int64_t last);

/* Do all items, neighbours together, in this thread alone where they are less work than waking the others.
 *
 * work      what `range` is given
 * items     how many there are; which thread does an item must not change what comes out
 * numbers   how many numbers an item reads or writes
 */
void share(range_work range, const void *work, int64_t items, int64_t numbers);

#endif
