#include "team.h"

#include <stddef.h>

/* GOMP_parallel of libgomp: calls `part` in every thread of a team; 0 threads are as many as the caller has set. */
typedef void (*parallel_function)(void (*part)(void *), void *data, unsigned threads, unsigned flags);
typedef int (*counting_function)(void);

static parallel_function team_parallel;
static counting_function team_mine, team_size;

/* Numbers below which a second thread costs more than it saves. */
enum { FEW = 1 << 14 };

struct shared {
    range_work range;
    const void *work;
    int64_t items;
};

/* Which kernels these are: their names, what they take, and the bits that they give. */
int bramble_version(void)
{
    return 1;
}

/* Borrow a team: addresses of GOMP_parallel, omp_get_thread_num and omp_get_num_threads; three times NULL for none. */
void bramble_borrow_team(parallel_function parallel, counting_function mine, counting_function size)
{
    team_parallel = parallel;
    team_mine = mine;
    team_size = size;
}

static void do_part(void *data)
{
    const struct shared *all = data;
    const int64_t mine = team_mine(), size = team_size();
    all->range(all->work, all->items * mine / size, all->items * (mine + 1) / size);
}

void share(range_work range, const void *work, int64_t items, int64_t numbers)
{
    struct shared all = {range, work, items};
    if (team_parallel == NULL || items * numbers < FEW)
        range(work, 0, items);
    else
        team_parallel(do_part, &all, 0, 0);
}
