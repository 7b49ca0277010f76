# CMake reads this right after llama.cpp's own project() line, while pip compiles the engine.
#
# `common` is the library behind llama.cpp's command-line programs. It is not part of the Python
# package, and yet half of the files to compile; the package's CMakeLists.txt forces it on in the
# cache, which this variable stands before.
set(LLAMA_BUILD_COMMON OFF)

# A header of ours mends what GCC makes of ggml's AMX kernels.
add_compile_options("$<$<COMPILE_LANGUAGE:CXX>:SHELL:-include ${CMAKE_CURRENT_LIST_DIR}/amx.h>")

# The AMX kernels keep their tiles in thread-local memory, which costs a call for each access in a
# shared library: prompts take a third longer. The tiles (21 KB) fit on the stack.
set(_memfit_amx "${CMAKE_CURRENT_SOURCE_DIR}/ggml/src/ggml-cpu/amx/mmq.cpp")
if(EXISTS "${_memfit_amx}")
    file(READ "${_memfit_amx}" _memfit_text)
    string(REPLACE "alignas(64) static thread_local" "alignas(64)" _memfit_text "${_memfit_text}")
    file(WRITE "${_memfit_amx}" "${_memfit_text}")
endif()
