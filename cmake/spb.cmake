# The build of SpikingBrain: one target per folder, one line per operator.
#
#   spb_add_folder(io DEPENDS core)      src/io/*.cpp -> library spb_io, *_test.cpp -> test io_test
#   spb_add_operator(rms_norm)           src/ops/rms_norm/ -> into spb_ops, ops_rms_norm_test, _bench
#                                        (called in src/ops/; the same in other folders)
#
# Files are found by name:
#   *_test.cpp           GoogleTest, one executable per folder or operator
#   *_bench.cpp          Google Benchmark, built with SPB_BUILD_BENCH
#   cuda_bench.cpp       a program of its own without that library, built with SPB_CUDA
#   *_fuzz.cpp           libFuzzer, one executable per file, built with SPB_BUILD_FUZZERS
#   *_cpu_kernels.cpp    compiled once per instruction set (see core/simd/vec.h)
#   *_test_kernels.cpp   the same for code that only tests use
#   *_cpu_avx2.cpp, *_cpu_avx512.cpp, *_cpu_amx.cpp   compiled for that instruction set only
#   *_cpu_x86_stub.cpp   compiled instead of the three above on other processors
#   *_cuda.cu            compiled with SPB_CUDA, *_cuda_stub.cpp without

include(GNUInstallDirs)

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE AND NOT CMAKE_CONFIGURATION_TYPES)
  set(CMAKE_BUILD_TYPE Release)
endif()
find_program(SPB_CCACHE ccache)
if(SPB_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${SPB_CCACHE})
endif()

if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(SPB_X86 ON)
  set(SPB_FLAGS_avx2 -mavx2 -mfma -mf16c -mbmi -mbmi2 -mlzcnt)
  set(SPB_FLAGS_avx512 ${SPB_FLAGS_avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512cd
                       -mavx512vnni -mprefer-vector-width=512)
  set(SPB_FLAGS_amx ${SPB_FLAGS_avx512} -mavx512bf16 -mamx-tile -mamx-int8 -mamx-bf16)
else()
  set(SPB_X86 OFF)
endif()
# Kernels may reassociate nothing on their own: order of summation is part of their contract.
set(SPB_KERNEL_FLAGS -O3 -fno-math-errno -fno-trapping-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # The AVX-512 headers of GCC 12 and older trip these warnings themselves (GCC bug 105593).
  list(APPEND SPB_KERNEL_FLAGS -Wno-uninitialized -Wno-maybe-uninitialized)
endif()

if(SPB_CUDA)
  # Real machine code for both generations: nothing is compiled when the program starts.
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80-real 90a-real)
  endif()
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  if(SPB_CCACHE AND NOT CMAKE_CUDA_COMPILER_LAUNCHER)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${SPB_CCACHE})
  endif()
  enable_language(CUDA)
  if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 does not know it of nvcc
    set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  endif()
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA_EXTENSIONS OFF)
  find_package(CUDAToolkit REQUIRED)
endif()

add_library(spb_settings INTERFACE)
target_include_directories(spb_settings INTERFACE ${PROJECT_SOURCE_DIR}/src)
# fmt 9 believes that nvcc knows no constexpr; nvcc warns (554) of conversions
# that a requires clause excludes.
target_compile_options(spb_settings INTERFACE
  "$<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wpedantic;-Wshadow;-Wconversion;-Wno-sign-conversion;\
-Wnon-virtual-dtor;-Werror>"
  "$<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings;-Xcompiler=-Wall,-Wextra,-Wno-psabi,-Werror;\
--expt-relaxed-constexpr;-diag-suppress=554;-DFMT_USE_CONSTEXPR=1>")
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # Notes about ABI changes of vector types; our vectors never cross a library boundary.
  target_compile_options(spb_settings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wno-psabi>)
endif()
if(SPB_SANITIZE)
  add_compile_options(-fsanitize=${SPB_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${SPB_SANITIZE})
endif()
if(SPB_BUILD_FUZZERS)
  # Every library reports its coverage, so that the fuzzer sees which input reaches new code.
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()

macro(spb_find_dependencies)
  find_package(Threads REQUIRED)
  find_package(fmt REQUIRED)
  find_package(nlohmann_json REQUIRED)
  find_package(CLI11 REQUIRED)
  find_package(PkgConfig REQUIRED)
  pkg_check_modules(PCRE2 REQUIRED IMPORTED_TARGET libpcre2-8)
  pkg_check_modules(UTF8PROC REQUIRED IMPORTED_TARGET libutf8proc)
  if(SPB_WITH_HDF5)
    pkg_check_modules(HDF5 REQUIRED IMPORTED_TARGET hdf5)
  endif()
  if(SPB_BUILD_TESTS)
    find_package(GTest REQUIRED)
    include(GoogleTest)
  endif()
  if(SPB_BUILD_BENCH)
    find_package(benchmark REQUIRED)
  endif()
endmacro()

# Compiles SOURCE into TARGET once per instruction set, each in its own namespace.
function(spb_add_kernels target source)
  get_filename_component(stem ${source} NAME_WE)
  foreach(isa portable avx2 avx512)
    set(variant ${CMAKE_CURRENT_BINARY_DIR}/${stem}_${isa}.cpp)
    file(CONFIGURE OUTPUT ${variant} CONTENT "#include \"${source}\"\n")
    set_source_files_properties(${variant} PROPERTIES
      COMPILE_OPTIONS "${SPB_KERNEL_FLAGS};${SPB_FLAGS_${isa}}"
      COMPILE_DEFINITIONS SPB_ISA=isa_${isa})
    target_sources(${target} PRIVATE ${variant})
  endforeach()
endfunction()

# Adds the library sources of DIRECTORY to TARGET by the naming rules above.
function(spb_add_sources target directory)
  file(GLOB sources CONFIGURE_DEPENDS ${directory}/*.cpp)
  foreach(source ${sources})
    if(source MATCHES "_(test|test_kernels|bench|fuzz)\\.cpp$")
      continue()
    elseif(source MATCHES "_cpu_kernels\\.cpp$")
      spb_add_kernels(${target} ${source})
    elseif(source MATCHES "cuda_stub\\.cpp$")
      if(NOT SPB_CUDA)
        target_sources(${target} PRIVATE ${source})
      endif()
    elseif(source MATCHES "_cpu_x86_stub\\.cpp$")
      if(NOT SPB_X86)
        target_sources(${target} PRIVATE ${source})
      endif()
    elseif(source MATCHES "_cpu_(avx2|avx512|amx)\\.cpp$")
      if(SPB_X86)
        set_source_files_properties(${source} PROPERTIES
          COMPILE_OPTIONS "${SPB_KERNEL_FLAGS};${SPB_FLAGS_${CMAKE_MATCH_1}}"
          COMPILE_DEFINITIONS SPB_ISA=isa_${CMAKE_MATCH_1})
        target_sources(${target} PRIVATE ${source})
      endif()
    else()
      target_sources(${target} PRIVATE ${source})
    endif()
  endforeach()
  if(SPB_CUDA)
    file(GLOB cuda_sources CONFIGURE_DEPENDS ${directory}/*_cuda.cu)
    target_sources(${target} PRIVATE ${cuda_sources})
  endif()
endfunction()

# Tests, benches and fuzzers found in DIRECTORY, linked against TARGET.
function(spb_add_checks name directory)
  file(GLOB tests CONFIGURE_DEPENDS ${directory}/*_test.cpp)
  if(SPB_BUILD_TESTS AND tests)
    add_executable(${name}_test ${tests})
    target_link_libraries(${name}_test PRIVATE ${ARGN} spb_settings GTest::gtest_main)
    target_compile_definitions(${name}_test PRIVATE SPB_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
    file(GLOB kernels CONFIGURE_DEPENDS ${directory}/*_test_kernels.cpp)
    foreach(kernel ${kernels})
      spb_add_kernels(${name}_test ${kernel})
    endforeach()
    gtest_discover_tests(${name}_test TEST_PREFIX "${name}/" DISCOVERY_MODE PRE_TEST
                         PROPERTIES TIMEOUT 900)
  endif()
  file(GLOB benches CONFIGURE_DEPENDS ${directory}/*_bench.cpp)
  list(FILTER benches EXCLUDE REGEX "/cuda_bench\\.cpp$")
  if(SPB_BUILD_BENCH AND benches)
    add_executable(${name}_bench ${benches})
    target_link_libraries(${name}_bench PRIVATE ${ARGN} spb_settings benchmark::benchmark)
  endif()
  if(SPB_CUDA AND EXISTS ${directory}/cuda_bench.cpp)
    add_executable(${name}_cuda_bench ${directory}/cuda_bench.cpp)
    target_link_libraries(${name}_cuda_bench PRIVATE ${ARGN} spb_settings)
  endif()
  file(GLOB fuzzers CONFIGURE_DEPENDS ${directory}/*_fuzz.cpp)
  if(SPB_BUILD_FUZZERS)
    foreach(fuzzer ${fuzzers})
      get_filename_component(stem ${fuzzer} NAME_WE)
      add_executable(${stem} ${fuzzer})
      target_compile_options(${stem} PRIVATE -fsanitize=fuzzer)
      target_link_options(${stem} PRIVATE -fsanitize=fuzzer)
      target_link_libraries(${stem} PRIVATE ${ARGN} spb_settings)
    endforeach()
  endif()
endfunction()

# A folder of src/: DEPENDS on other folders, LINKS external libraries.
function(spb_add_folder name)
  cmake_parse_arguments(ARG "" "" "DEPENDS;LINKS" ${ARGN})
  add_library(spb_${name} STATIC)
  spb_add_sources(spb_${name} ${CMAKE_CURRENT_SOURCE_DIR})
  target_link_libraries(spb_${name} PRIVATE spb_settings)
  target_include_directories(spb_${name} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>)
  foreach(dependency ${ARG_DEPENDS})
    target_link_libraries(spb_${name} PUBLIC spb_${dependency})
  endforeach()
  target_link_libraries(spb_${name} PUBLIC ${ARG_LINKS})
  set_property(GLOBAL APPEND PROPERTY SPB_FOLDERS spb_${name})
  set_property(GLOBAL APPEND PROPERTY SPB_EXTERNAL ${ARG_LINKS})
  spb_add_checks(${name} ${CMAKE_CURRENT_SOURCE_DIR} spb_${name})
endfunction()

# A folder of an operator, inside the folder of src/ whose library it becomes part of.
function(spb_add_operator name)
  get_filename_component(folder ${CMAKE_CURRENT_SOURCE_DIR} NAME)
  spb_add_sources(spb_${folder} ${CMAKE_CURRENT_SOURCE_DIR}/${name})
  spb_add_checks(${folder}_${name} ${CMAKE_CURRENT_SOURCE_DIR}/${name} spb_${folder})
endfunction()

# libspikingbrain: every folder but the command line, as one library with one public header.
function(spb_install)
  get_property(folders GLOBAL PROPERTY SPB_FOLDERS)
  get_property(external GLOBAL PROPERTY SPB_EXTERNAL)
  list(REMOVE_ITEM folders spb_cli)
  list(REMOVE_DUPLICATES external)
  add_library(spikingbrain)
  foreach(folder ${folders})
    target_sources(spikingbrain PRIVATE $<TARGET_OBJECTS:${folder}>)
  endforeach()
  set_target_properties(spikingbrain PROPERTIES
    LINKER_LANGUAGE CXX VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR})
  target_link_libraries(spikingbrain PRIVATE ${external})
  if(BUILD_SHARED_LIBS AND UNIX AND NOT APPLE)
    target_link_options(spikingbrain PRIVATE
      LINKER:--version-script=${PROJECT_SOURCE_DIR}/cmake/spikingbrain.map)
  endif()
  target_compile_features(spikingbrain INTERFACE cxx_std_20)
  target_include_directories(spikingbrain INTERFACE $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  install(TARGETS spikingbrain EXPORT spikingbrain-targets)
  install(TARGETS spb RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
  install(FILES src/engine/spikingbrain.h
          DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}/spikingbrain)
  set(config_dir ${CMAKE_INSTALL_LIBDIR}/cmake/spikingbrain)
  install(EXPORT spikingbrain-targets NAMESPACE spikingbrain:: DESTINATION ${config_dir})
  include(CMakePackageConfigHelpers)
  configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/spikingbrain-config.cmake.in
    ${PROJECT_BINARY_DIR}/spikingbrain-config.cmake INSTALL_DESTINATION ${config_dir})
  write_basic_package_version_file(${PROJECT_BINARY_DIR}/spikingbrain-config-version.cmake
    COMPATIBILITY SameMinorVersion)
  install(FILES ${PROJECT_BINARY_DIR}/spikingbrain-config.cmake
                ${PROJECT_BINARY_DIR}/spikingbrain-config-version.cmake DESTINATION ${config_dir})
endfunction()
