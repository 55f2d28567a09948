/* Adding up packed updates: small integers times a step a block (agent/update/quantise.py has the format).
 *
 * Many updates are added at once, a tile of numbers after another: the tile of the sum stays in the nearest cache, where one update
 * after the other would send the whole sum through memory for each. A number is multiplied, rounded, added and rounded in the order of
 * the updates, so the sum has the bits that one row after the other gives (this file must be compiled without contraction).
 */
#include <stdint.h>

enum { TILE = 256, TILES_A_BLOCK = 2 };

/* Reads a tile's codes: bytes, or halves of bytes of which the first half of all numbers has the low ones, eight above their value. */
static void read_tile(const uint8_t *codes, int64_t bits, int64_t blocks, int64_t tile, int16_t *found)
{
    if (bits == 8) {
        const int8_t *bytes = (const int8_t *)codes + tile * TILE;
        for (int i = 0; i < TILE; i++)
            found[i] = bytes[i];
    } else if (tile < blocks) {
        const uint8_t *pairs = codes + tile * TILE;
        for (int i = 0; i < TILE; i++)
            found[i] = (int16_t)((pairs[i] & 15) - 8);
    } else {
        const uint8_t *pairs = codes + (tile - blocks) * TILE;
        for (int i = 0; i < TILE; i++)
            found[i] = (int16_t)((pairs[i] >> 4) - 8);
    }
}

/* Add updates to a sum.
 *
 * updates  how many
 * codes    of each: a byte a number (bits 8), or half of one (bits 4), of whole blocks
 * steps    of each: one a block, weight included
 * bits     8 or 4, of all
 * blocks   how many blocks of 512 numbers
 * count    numbers in the sum; the last block may have more, which are left out
 * signs    256 numbers, 1 or -1
 * sum      what is added to
 * squares  of each update: the sum of the squares of what was added
 * tiles    of each update: the sum of its numbers times the signs, for every 256 numbers; 2 * blocks
 */
void bramble_add_codes(int64_t updates, const uint8_t *const *codes, const float *const *steps, int64_t bits, int64_t blocks,
                       int64_t count, const int16_t *signs, float *sum, double *squares, float *const *tiles)
{
    for (int64_t update = 0; update < updates; update++)
        squares[update] = 0;
    for (int64_t tile = 0; tile < TILES_A_BLOCK * blocks; tile++) {
        int64_t left = count - tile * TILE;
        int length = left >= TILE ? TILE : left > 0 ? (int)left : 0;
        float *numbers = sum + tile * TILE;
        for (int64_t update = 0; update < updates; update++) {
            int16_t found[TILE];
            float step = steps[update][tile / TILES_A_BLOCK];
            int32_t square = 0, signed_sum = 0;
            read_tile(codes[update], bits, blocks, tile, found);
            for (int i = length; i < TILE; i++)
                found[i] = 0;
            for (int i = 0; i < TILE; i++) {
                square += (int32_t)found[i] * found[i];
                signed_sum += (int32_t)found[i] * signs[i];
            }
            if (length == TILE)
                for (int i = 0; i < TILE; i++)
                    numbers[i] += step * (float)found[i];
            else
                for (int i = 0; i < length; i++)
                    numbers[i] += step * (float)found[i];
            squares[update] += (double)step * step * square;
            tiles[update][tile] = step * (float)signed_sum;
        }
    }
}
