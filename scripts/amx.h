// Read before each of the engine's C++ files (engine.cmake).
//
// GCC's _tile_loadconfig names only the first 8 of the 64 bytes that the instruction reads, so that
// the optimizer drops the rest of ggml's tile configuration, and the next tile instruction ends the
// process (SIGILL). Seen with GCC 12 on a CPU with AMX: prompts of 32 tokens and more.
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg\t%X0" ::"m"(*(const char(*)[64])(config)))
#endif
