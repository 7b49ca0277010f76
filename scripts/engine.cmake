# CMake reads this right after llama.cpp's own project() line, while pip compiles the engine.
#
# `common` is the library behind llama.cpp's command-line programs. It is not part of the Python
# package, and yet half of the files to compile; the package's CMakeLists.txt forces it on in the
# cache, which this variable stands before.
set(LLAMA_BUILD_COMMON OFF)

# A header of ours mends what GCC makes of ggml's AMX kernels.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include ${CMAKE_CURRENT_LIST_DIR}/amx.h>")

# Replaces a text in one of the CPU backend's sources; where it is not there, nothing changes.
function(memfit_mend name old new)
    set(path "${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-cpu/${name}")
    if(EXISTS "${path}")
        file(READ "${path}" text)
        string(REPLACE "${old}" "${new}" text "${text}")
        file(WRITE "${path}" "${text}")
    endif()
endfunction()

# The AMX kernels keep their tiles in thread-local memory, which costs a call for each access in a
# shared library: prompts take a third longer. The tiles (21 KB) fit on the stack.
memfit_mend(amx/mmq.cpp "alignas(64) static thread_local" "alignas(64)")

# Heads are taken in steps of 128 numbers on CPUs with AVX512-FP16, what is left over one by one: in
# attention, heads of 64 are 4 times slower than in steps of 64, and heads of 128 no faster.
memfit_mend(simd-mappings.h "#define GGML_F16_STEP 128\n#define GGML_F16_EPR  32\n\n#define GGML_F16x32"
    "#define GGML_F16_STEP 64\n#define GGML_F16_EPR  32\n\n#define GGML_F16x32")
