# CMake reads this right after llama.cpp's own project() line, while pip compiles the engine.
#
# `common` is the library behind llama.cpp's command-line programs. It is not part of the Python
# package, and yet half of the files to compile; the package's CMakeLists.txt forces it on in the
# cache, which this variable stands before.
set(LLAMA_BUILD_COMMON OFF)

# A header of ours mends what GCC makes of ggml's AMX kernels.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include ${CMAKE_CURRENT_LIST_DIR}/amx.h>")
